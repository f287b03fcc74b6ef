"""Paged KV memory: the blocks, who holds them, and the prefixes that can be shared."""
