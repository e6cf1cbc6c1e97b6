"""Steps → the run directory, what the user watches, and what a resumed run needs."""
