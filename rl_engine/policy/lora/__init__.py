"""Base model → base model with an adapter that learns: where it starts, how it computes, and the files it is."""
