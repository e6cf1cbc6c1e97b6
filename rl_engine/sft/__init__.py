"""Conversations → a supervised adapter or model."""
