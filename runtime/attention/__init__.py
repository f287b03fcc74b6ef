"""Causal attention of flat rows over paged KV: one file per kernel, made by `create_attention`."""
