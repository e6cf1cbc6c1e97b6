"""Cells that are due → processes at work on them, each alone or several together → their results."""
