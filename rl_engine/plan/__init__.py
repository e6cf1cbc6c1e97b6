"""Configuration → what a run will need: capacity, compute, memory, time."""
