"""Benchmarks of the tiny configuration against transformers' OLMoE of the same shape, side by side in one process."""
