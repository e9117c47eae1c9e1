"""Trees of tokens that continue one prompt."""
