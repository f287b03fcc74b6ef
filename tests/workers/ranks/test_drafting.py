"""Tokens stay what they are however a drafter is spread over the ranks, and whatever it skips."""

import random
from pathlib import Path

import pytest
from tests.support.checkpoints import small_config, write_checkpoint
from tests.support.drafting_teams import GREEDY, SEEDED, drafting_team
from tests.support.engines import Collected

from twinflow.protos.errors import ConfigError
from twinflow.runtime.engine import Engine
from twinflow.runtime.request import Request
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.runtime.speculative.config import SpeculativeConfig

pytestmark = pytest.mark.slow

SETTINGS = {"num_kv_blocks": 60, "max_num_seqs": 6, "max_model_len": 120}
MODEL = small_config(num_layers=6, num_heads=8, num_kv_heads=2, head_dim=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), MODEL)


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, list[int]]:
    """What one rank generates without proposals."""
    with drafting_team(model, 1, None, **SETTINGS) as engine:
        return generate(engine)


def generate(engine: Engine) -> dict[str, list[int]]:
    """Tokens of some requests, greedy and seeded ones, of which some come while others run."""
    rng, collected = random.Random(4), Collected()
    for step in range(400):
        if step % 3 == 0 and step < 18:
            prompt = [rng.randrange(3, 300) for _ in range(rng.randrange(1, 40))]
            params = SEEDED if step % 2 else GREEDY
            engine.add_request(
                Request(request_id=f"r{step}", prompt_token_ids=prompt, params=params)
            )
        engine.step()
        collected.take(engine)
        engine.check_integrity()
        if step >= 18 and not engine.runnable:
            assert collected.failures == {}
            return collected.tokens
    raise AssertionError("the engine does not come to an end")


def easyspec(model: Path, **layer_parallel: object) -> SpeculativeConfig:
    ranks = layer_parallel.pop("ranks", None)
    return SpeculativeConfig.parse(
        {
            "method": "easyspec",
            "model": str(model),
            "num_speculative_tokens": 4,
            "adaptive": False,
            "draft_tensor_parallel_size": ranks,
            "layer_parallel": layer_parallel,
        }
    )


CASES = [
    (1, {"size": 1}),
    (1, {"size": 2}),
    (1, {"size": 4, "calibrate": False}),
    (1, {"size": 3, "plan": "measured"}),
    (1, {"size": "auto"}),
    (2, {"size": 3, "layout": "single"}),
    (2, {"size": 1, "layout": "fused_tp"}),
    (2, {"size": 4, "layout": "fused_tp"}),
    (2, {"size": 4, "layout": "owner"}),
    (2, {"size": 3, "layout": "owner", "mlp": "replicated", "calibrate": False}),
    (2, {"size": "auto"}),
    (2, {"size": 3, "plan": "measured"}),
    (4, {"size": 3, "layout": "owner", "mlp": "replicated"}),
    (4, {"size": 2, "layout": "fused_tp", "ranks": 2}),
]


@pytest.mark.parametrize(("size", "choice"), CASES, ids=str)
def test_no_way_to_draft_changes_a_token(
    model: Path, expected: dict[str, list[int]], size: int, choice: dict[str, object]
) -> None:
    config = easyspec(model, **choice)
    with drafting_team(model, size, config, **SETTINGS) as engine:
        assert generate(engine) == expected
        account = engine.counters.speculation
    check(account, exact=choice["size"] == 1, calibrated=config.layer_parallel.calibrate)


def check(account: SpeculationAccount, *, exact: bool, calibrated: bool) -> None:
    """The model drafts for itself: what is exact is right, what is not is wrong at times."""
    assert account.accepted_tokens > 0
    if exact:
        assert account.accepted_tokens == account.draft_tokens
    elif calibrated:
        assert account.accepted_at[0] == account.drafts


def test_a_layout_that_the_ranks_cannot_have_is_refused_by_field(model: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"draft_tensor_parallel_size is 2, .* the 1 ranks"),
        drafting_team(model, 1, easyspec(model, ranks=2), **SETTINGS),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"layer_parallel: of 6 layers, the first 4"),
        drafting_team(model, 1, easyspec(model, size=2, first=4, last=3), **SETTINGS),
    ):
        pass
