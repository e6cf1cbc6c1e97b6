"""The text of an answer → the same answer in one spelling, and its pieces at the top level."""
