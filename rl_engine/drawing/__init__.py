"""Numbers → figures fit for a paper: sizes, fonts, colours and markers, the same in every command that draws."""
