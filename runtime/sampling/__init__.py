"""Choosing the next token of each sequence from the model's logits.

What a sequence gets depends on its own logits, sampling parameters, seed and position and on
nothing else: rows never influence one another, in any bit. Nothing here knows about text,
scheduling or why a sequence ends.
"""

from twinflow.runtime.sampling.sampler import Sampler
from twinflow.runtime.sampling.state import SamplingState

__all__ = ["Sampler", "SamplingState"]
