"""Graded samples → scores with intervals, and the report of one evaluation."""
