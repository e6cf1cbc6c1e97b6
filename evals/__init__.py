"""Adapter → score: versioned suites, estimators with intervals, and the report of an evaluation."""

import runpy
from pathlib import Path

_SHADOWING = Path(__file__).parents[1] / "datafiles" / "shadowing.py"
runpy.run_path(str(_SHADOWING))["refuse_shadowing"]("datafiles", "rewards", "rollout")
