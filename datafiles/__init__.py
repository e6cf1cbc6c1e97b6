"""A user's file or directory → rows → problems, or the reasons why it has none."""
