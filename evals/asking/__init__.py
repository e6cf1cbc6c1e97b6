"""Adapter → how it is asked: as in its training, unless told otherwise."""
