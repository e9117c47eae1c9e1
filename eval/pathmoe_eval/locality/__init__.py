"""How alike the routing of completions is that share a prefix, and what that is worth."""
