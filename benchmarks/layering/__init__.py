"""Parts of `benchmarks.layered`."""
