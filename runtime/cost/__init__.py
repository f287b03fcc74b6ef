"""How long steps take: what decides it, and models of it."""
