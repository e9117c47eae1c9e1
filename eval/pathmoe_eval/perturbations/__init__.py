"""The same documents routed otherwise, and what that does to perplexity."""
