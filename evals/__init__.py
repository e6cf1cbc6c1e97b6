"""Adapter → score: versioned suites, estimators with intervals, and the report of an evaluation."""

import runpy
from pathlib import Path

_BESIDE = Path(__file__).parents[1] / "datafiles" / "beside.py"
runpy.run_path(str(_BESIDE))["check_ours"]("datafiles", "rewards", "rollout")
