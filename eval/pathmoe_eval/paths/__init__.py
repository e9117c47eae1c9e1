"""How concentrated expert paths are: counts, entropy with its corrections, rarefaction, coverage, a sketch."""
