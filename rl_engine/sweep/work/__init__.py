"""Due cells → processes that run them, alone or several together → their results."""
