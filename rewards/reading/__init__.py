"""Answer text → what kind of answer it is."""
