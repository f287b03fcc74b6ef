"""Principal components of what decides the scores, for schemes with common columns.

As `joint`, but values count a tenth. Common columns are part of every shard's scores and of one
shard's values only, so what scores are made of has to come first. Without common columns `joint` is
better.
"""

from twinflow.parallel.latent.transforms.joint import Joint


class Scores(Joint):
    """See the module."""

    name = "scores"
    value_weight = 0.1
