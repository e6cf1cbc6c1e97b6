"""A grid of runs → one table, the paper's figures, and raw results small enough to commit."""
