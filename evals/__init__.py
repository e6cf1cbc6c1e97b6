"""Adapter → score: versioned suites, estimators with intervals, and the report of one evaluation."""
