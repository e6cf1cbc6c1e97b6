"""Run directories → one page that opens offline: `python -m rl_engine.report RUN_DIR …`."""
