"""Adapter → what it forgot: scores on tasks of lm-evaluation-harness, and its divergence from the base model."""
