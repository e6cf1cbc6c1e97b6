"""Trained adapter → a repository on the hub."""
