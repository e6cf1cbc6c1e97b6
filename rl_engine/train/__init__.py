"""Configuration → a trained adapter: assembles the parts and runs the training loop.

The package itself is callable: after `from rl_engine import train`, `train(…)` calls `rl_engine.api.training.train`.
A plain function under this name would be replaced by the package as soon as anything imported one of its modules.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    # Import on call, so that the command can handle Ctrl-C before anything heavy is loaded.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from rl_engine.api import training

        return training.train(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        """The signature that notebooks display."""
        import inspect

        from rl_engine.api import training

        return inspect.signature(training.train)


sys.modules[__name__].__class__ = _Package
