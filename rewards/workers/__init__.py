"""Requests → replies, by processes that judge within limits and can be killed."""
