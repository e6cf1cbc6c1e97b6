"""Requests → replies, from processes that judge under limits and can be killed."""
