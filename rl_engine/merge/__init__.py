"""Base model + adapter → a standalone model in a directory on this machine."""
