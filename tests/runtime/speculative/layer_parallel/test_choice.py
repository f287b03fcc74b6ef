"""The choice follows what was measured, and nothing else."""

import pytest
import torch
from tests.support.runners import make_model, make_runner
from tests.support.tiny_models import tiny_config

from twinflow.protos.errors import ConfigError
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.layer_parallel import probe
from twinflow.runtime.speculative.layer_parallel.choice import Candidate, best
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan
from twinflow.runtime.speculative.layer_parallel.share import (
    SINGLE,
    DraftShare,
    possible_shares,
)

LAYERS = 6
OWNER = DraftShare("owner", "tp", 2)


def candidate(
    share: DraftShare, size: int, grouped_s: float, grouped_agreement: float
) -> Candidate:
    plan = LayerPlan.uniform(LAYERS, size)
    return Candidate(share, plan, 1.0, grouped_s, 0.9, grouped_agreement)


def test_the_most_tokens_per_second_win() -> None:
    serial = candidate(SINGLE, 1, 1.0, 0.9)
    quick = candidate(SINGLE, 4, 0.6, 0.8)
    spread = candidate(OWNER, 4, 0.4, 0.8)
    assert best([serial, quick, spread], 4, verify_s=1.0) is spread
    # A dear target wants agreement, a cheap one speed.
    assert best([serial, quick], 4, verify_s=50.0) is serial
    assert best([serial, quick], 4, verify_s=0.1) is quick
    # Of one token a proposal is exact, and all are alike: the first.
    assert best([serial, spread], 1, verify_s=1.0) is serial


def test_expected_tokens_are_those_of_the_chain() -> None:
    one = candidate(SINGLE, 4, 0.5, 0.5)
    assert one.tokens(1) == pytest.approx(1.9)
    assert one.tokens(3) == pytest.approx(1 + 0.9 * 1.75)
    assert one.seconds(3, verify_s=2.0) == pytest.approx(1.0 + 2 * 0.5 + 2.0)
    assert "groups of 4: 2.58 tokens in 4000.0 ms" in one.describe(3, 2.0)


def choose(ranks: int, wanted: int | None = None, **layer_parallel: object) -> list[str]:
    config = SpeculativeConfig.parse(
        {
            "method": "easyspec",
            "model": "m",
            "draft_tensor_parallel_size": wanted,
            "layer_parallel": layer_parallel,
        }
    )
    return [str(share) for share in possible_shares(config, ranks)]


def test_what_the_operator_leaves_open_is_possible() -> None:
    both = ["fused_tp on 4 ranks", "owner with tp MLPs on 4 ranks"]
    assert choose(1) == ["single"]
    assert choose(4) == ["single", *both]
    assert choose(4, 2) == [each.replace("4", "2") for each in both]
    assert choose(4, 1) == ["single"]
    assert choose(4, layout="single") == ["single"]
    assert choose(4, layout="owner", mlp="replicated") == ["owner with replicated MLPs on 4 ranks"]
    with pytest.raises(ConfigError, match="draft_tensor_parallel_size is 3"):
        choose(4, 3)
    plain = SpeculativeConfig(method="draft_model", model="m")
    assert possible_shares(plain, 4) == [SINGLE]


def test_a_drafter_agrees_with_itself_and_its_plans_less_the_more_they_skip() -> None:
    model = make_model(tiny_config(num_layers=LAYERS))
    runner = make_runner(model, 40)
    size = probe.ProbeSize(sequences=4, length=12, positions=5).fitting(runner, 64, 64)
    plans = [LayerPlan.uniform(LAYERS, each) for each in (1, 2, 4)]
    said = probe.DraftProbe(runner, model.config.vocab_size, size).say(plans)
    assert {len(text) for text in said.texts} == {12}
    target = probe.target_says(make_runner(model, 40), said, size)
    torch.testing.assert_close(target, said.exact, atol=1e-5, rtol=1e-4)
    exact, planned = probe.agreement(said, target)
    assert exact == pytest.approx(1.0, abs=1e-4)
    assert planned[plans[0]] == pytest.approx(1.0, abs=1e-4)
    assert planned[plans[2]] < planned[plans[1]] < 0.999
    errors = probe.errors(said)
    assert errors[plans[2]] == pytest.approx(1.0 - planned[plans[2]], abs=1e-4)


def test_groups_are_measured_one_at_a_time() -> None:
    groups = probe.group_plans(LAYERS, 3, first=1, last=1)
    assert set(groups) == {(1, 2), (2, 2), (3, 2), (1, 3), (2, 3)}
    assert groups[2, 3].sizes == (1, 1, 3, 1)
    model = make_model(tiny_config(num_layers=LAYERS))
    size = probe.ProbeSize(sequences=4, length=8, positions=3)
    said = probe.DraftProbe(make_runner(model, 40), model.config.vocab_size, size).say(
        groups.values()
    )
    errors = probe.group_errors(said, groups)
    assert all(0.0 < error < 1.0 for error in errors.values())
    plan = LayerPlan.measured(LAYERS, 4, errors, 1, 1)
    assert sorted(plan.sizes) in ([1, 1, 1, 3], [1, 1, 2, 2])


def test_small_memory_and_short_contexts_mean_less_text() -> None:
    runner = make_runner(make_model(tiny_config(num_layers=1)), 4, 16, 8)
    assert probe.ProbeSize().fitting(runner, 8, 512) == probe.ProbeSize(3, 8, 6)
    assert probe.ProbeSize().fitting(runner, 64, 5) == probe.ProbeSize(3, 4, 3)
