"""Steps → the run directory, what a person watches, and what a resumed run needs."""
