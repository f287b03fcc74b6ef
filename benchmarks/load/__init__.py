"""Parts of the open-loop load generator: `python -m benchmarks.serve` puts them together."""
