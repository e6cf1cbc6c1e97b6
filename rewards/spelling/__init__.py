"""Answer text → the same answer in a normalized spelling, and its top-level pieces."""
