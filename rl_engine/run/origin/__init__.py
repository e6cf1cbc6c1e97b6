"""A process that begins or resumes a run → what is noted of it: when, where, by what, with which command."""
