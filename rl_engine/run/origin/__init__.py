"""A process that begins or resumes a run → its provenance: when, where, with which code and which command."""
