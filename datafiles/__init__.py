"""A file or directory that people have → rows → problems, or the reasons why not."""
