"""Model → what is trained in it, and how it computes: adapters, log-probabilities, attention."""
