"""Prompts → completions, by workers on this machine or many that may be lost at any moment."""
