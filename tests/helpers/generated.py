"""Shared by the tests of generated tasks."""

from __future__ import annotations

import importlib.util

import pytest

needs_reasoning_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed (requirements/dev.txt)"
)
