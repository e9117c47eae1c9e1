"""Routing recorded from any MoE of transformers, and kept on disk."""
