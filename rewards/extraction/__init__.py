"""Completion → its final answer as text."""
