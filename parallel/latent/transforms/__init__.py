"""Bases in which latents are cached: one file per kind, made by `create_bases`."""
