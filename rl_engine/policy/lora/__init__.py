"""Base model → base model with a trainable adapter: how it starts, how it computes, and its files."""
