"""Configuration → a trained adapter: the parts put together, and the loop that closes the circle.

Called, as after `from rl_engine import train`, the package is the function `rl_engine.api.training.train`: a function
would be replaced by the package of the same name as soon as somebody imports a module of it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    # Loaded when it is called: the command hears Ctrl-C before it loads anything.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from rl_engine.api import training

        return training.train(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        """What a notebook shows."""
        import inspect

        from rl_engine.api import training

        return inspect.signature(training.train)


sys.modules[__name__].__class__ = _Package
