"""Environment → the processes that a launcher started for one command, and this process's share of the machine."""
