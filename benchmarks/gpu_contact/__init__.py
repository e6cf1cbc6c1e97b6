"""A card nobody has met → everything worth knowing of this project on it, in under ten minutes."""
