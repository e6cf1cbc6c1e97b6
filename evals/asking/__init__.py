"""Adapter → its prompts: as in training, unless told otherwise."""
