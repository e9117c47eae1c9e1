"""How much of routing is the geometry of hidden states, as the router sees it."""
