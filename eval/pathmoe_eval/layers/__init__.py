"""How consistently layers route a token: agreement, overlap, runs, information, best matchings."""
