"""Scripts and notebooks → commands in processes of their own, and what they leave; `rl_engine` has its names."""
