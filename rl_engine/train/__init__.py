"""Configuration → a trained adapter: the parts put together, and the loop that closes the circle.

Called, as after `from rl_engine import train`, the package is the function `rl_engine.api.training.train`: a function
would be replaced by the package of the same name as soon as somebody imports a module of it.
"""

from __future__ import annotations

import sys
from types import ModuleType

from rl_engine.api import training


class _Package(ModuleType):
    __call__ = staticmethod(training.train)


sys.modules[__name__].__class__ = _Package
