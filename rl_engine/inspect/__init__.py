"""Adapter files → what was learned: norms, spectra, used rank."""
