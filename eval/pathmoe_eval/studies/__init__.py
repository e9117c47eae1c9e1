"""Variants trained on equal terms over seeds, and what tells them apart."""
