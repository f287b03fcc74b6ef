"""Parts of `benchmarks.latent`."""
