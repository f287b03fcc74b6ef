"""What each layer loses when its scores are computed from slices.

For each layer in turn, that layer alone is sliced and the shards of all others add up their scores:
what then differs from exact attention is that layer's doing. Divergence is measured on windows
that calibrate, so that nothing which is measured later takes part in the choice.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.tpla import TensorParallelLatent
from twinflow.parallel.latent.transforms.basis import LatentTransform
from twinflow.parallel.ranks.base import RankGroup
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.runtime.calibration.corpus import Corpus
from twinflow.runtime.calibration.scoring import Scored, log_probs, silent
from twinflow.runtime.calibration.subject import Subject

# Layers differ by orders of magnitude: a few windows tell them apart.
_WINDOWS = 8


def measure_layers(
    subject: Subject,
    corpus: Corpus,
    transform: LatentTransform,
    scheme: LatentScheme,
    scored: Scored,
) -> tuple[float, ...]:
    """KL(exact || found) per token for each layer, with that one sliced and all others exact.

    Args:
        subject: the model.
        corpus: the text; its calibration windows are scored.
        transform: bases of the latents; factors of 1, because the scores of most layers are whole.
        scheme: how they are sliced.
        scored: told how many layers are done.
    """
    layers = range(subject.config.num_layers)
    windows = corpus.calibration[:_WINDOWS]
    everywhere = replace(scheme, basis=transform.id, exact_layers=tuple(layers))

    def work(ranks: RankGroup) -> list[float]:
        sharing = TensorParallelLatent(everywhere, ranks, ranks.neighbours(scheme.shards))
        runner = subject.runner(LatentPlan(sharing, transform))

        def scores() -> list[Tensor]:
            return list(log_probs(runner, subject, windows, corpus.prompt, silent))

        exact, losses = scores(), []
        for layer in layers:
            if ranks.rank == 0:
                scored(layer, len(layers))
            sharing.join_in(other for other in layers if other != layer)
            losses.append(_divergence(exact, scores()))
        if ranks.rank == 0:
            scored(len(layers), len(layers))
        return losses

    return tuple(run_ranks(scheme.shards, work)[0])


def _divergence(exact: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """KL(exact || found) per token of all windows."""
    total = sum(
        float(F.kl_div(b.double(), a.double(), reduction="sum", log_target=True))
        for a, b in zip(exact, found, strict=True)
    )
    return total / sum(map(len, exact))
