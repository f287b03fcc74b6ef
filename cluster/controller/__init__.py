"""Keeps a cluster as it is wanted: pure decisions over a snapshot, and a loop that acts on them."""
