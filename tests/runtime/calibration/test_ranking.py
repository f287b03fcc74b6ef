"""What slicing each layer alone costs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch.nn.functional as F
from tests.support.calibrations import calibration, opened, tiny_latent_config, tiny_state
from tests.support.latent_oracle import LatentOracle

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.fitting import plain_transform
from twinflow.parallel.latent.transforms.none import NoTransform
from twinflow.runtime.calibration.ranking import measure_layers


@pytest.mark.parametrize("shards", [2, 4])
def test_costs_of_layers_are_those_of_the_equations(tmp_path: Path, shards: int) -> None:
    """A float64 oracle without cache, ranks or kernels finds the same."""
    subject, corpus = opened(calibration(tmp_path))
    corpus = replace(corpus, calibration=corpus.calibration[:2])
    scheme = LatentScheme(kind="tpla", shards=shards)
    config, state = tiny_latent_config(), tiny_state()
    transform = plain_transform(NoTransform(), config.num_layers, subject.latent.kv_rank)
    heard: list[tuple[int, int]] = []
    found = measure_layers(subject, corpus, transform, scheme, lambda *done: heard.append(done))
    assert heard == [(0, 2), (1, 2), (2, 2)]

    costs = []
    for layer in range(2):
        others = replace(scheme, exact_layers=(1 - layer,))
        cost, count = 0.0, 0
        for window in corpus.calibration:
            tokens = window[:-1]
            scored = slice(corpus.prompt, len(tokens))
            exact, sliced = (
                F.log_softmax(oracle.logits(tokens, corpus.prompt)[scored], dim=1)
                for oracle in (LatentOracle(config, state), LatentOracle(config, state, others))
            )
            cost += float(F.kl_div(sliced, exact, reduction="sum", log_target=True))
            count += len(exact)
        costs.append(cost / count)
    assert found == pytest.approx(costs, rel=1e-3)
    assert min(costs) > 1e-3
    assert max(costs) > 1.01 * min(costs), "the test does not tell the layers apart"
