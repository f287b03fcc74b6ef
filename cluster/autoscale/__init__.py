"""How many workers each pool should have: pure decisions, for a controller and for a simulator."""
