"""Attention over cached latents: one file per kernel, made by `create_latent_attention`."""
