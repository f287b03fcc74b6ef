"""The engine core: requests, schedulers, KV blocks, models, sampling, text.

This package opens no socket and knows neither Ray nor gRPC. Importing it does not import torch.
"""
