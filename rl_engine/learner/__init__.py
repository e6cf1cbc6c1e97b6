"""Graded groups → advantages → micro-batches → loss → gradient → update."""
