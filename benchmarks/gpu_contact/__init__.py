"""An unknown card → everything worth knowing about this project on it, in under ten minutes."""
