"""Benchmarks that run from a checkout. Nothing here is installed with twinflow."""
