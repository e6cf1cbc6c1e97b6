"""The processes that a launcher started for one command."""
