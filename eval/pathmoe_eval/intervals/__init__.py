"""Intervals of figures of routing over the draw of documents."""
