"""Adapter → score: versioned suites, estimators with intervals, and the report of an evaluation."""

from datafiles.beside import check_ours

check_ours()
