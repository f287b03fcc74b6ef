"""Tensors and ranks: KV layouts, links between two workers, meshes and collectives.

This package knows no requests, no schedulers and no gRPC.
"""
