"""Scripts and notebooks → commands in separate processes, and their results; `rl_engine` re-exports the names."""
