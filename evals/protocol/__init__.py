"""Adapter → how it was trained: its prompts and grading, and the commit of its base model, unless told otherwise."""
