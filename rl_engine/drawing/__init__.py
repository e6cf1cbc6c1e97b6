"""Numbers → figures that read in a paper: sizes, type, colours and marks, the same in every command that draws."""
