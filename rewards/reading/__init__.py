"""Answer text → a node that says what kind of answer it is."""
