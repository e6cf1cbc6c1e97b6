"""Configuration → a trained adapter: the parts put together, and the loop that closes the circle."""
