"""Bases in which latents are cached, which tensor-parallel latent attention depends on.

basis.py      LatentBasis, LatentTransform: what a transform is
moments.py    LatentMoments: what calibration knows of the latents of a layer
base.py       TransformKind: a way to find bases; none, hadamard, pca and joint are a file each
registry.py   create_transform_kind: kinds by name
factors.py    fit_logit_factors: by how much each shard scales its logits
fitting.py    fit_transform: the bases of all layers for a scheme
name.py       TransformName: a kind and its common columns, as operators write them
file.py       StoredTransform: safetensors with a card
"""
