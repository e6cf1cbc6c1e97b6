"""Configuration → what a run will ask for: capacity, compute, memory, time."""
