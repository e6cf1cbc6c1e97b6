"""Prompts → completions, sampled by workers on one or many machines that may be lost at any moment."""
