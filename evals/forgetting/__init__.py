"""Adapter → what it forgot: tasks of lm-evaluation-harness, and the divergence from the base model."""
