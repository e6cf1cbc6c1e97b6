"""Base model + adapter → a model of its own in a directory, on this machine."""
