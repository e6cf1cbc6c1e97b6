"""Two answers as read → equal or not."""
