"""Programs that a model has written: compiled under limits, never run, grouped by what comes out."""
