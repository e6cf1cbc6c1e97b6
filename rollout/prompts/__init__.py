"""Data source → problem → prompt, in an order that a resumed run repeats."""
