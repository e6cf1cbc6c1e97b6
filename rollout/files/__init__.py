"""File input and output: text that users wrote, outputs that are complete or absent, and whose they are."""
