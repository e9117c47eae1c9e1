"""Models and data opened for evaluation, documents scored and recorded, perplexity."""
