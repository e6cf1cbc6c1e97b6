"""Model → what is trained of it, and how it computes: adapters, log-probabilities, attention."""
