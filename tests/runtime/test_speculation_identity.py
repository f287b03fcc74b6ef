"""Tokens and log probabilities with proposals are those without, for models, policies and drafters.

What everything is compared with is each request alone and without proposals.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
from tests.support.kernels import kernels_named
from tests.support.model_engines import ModelEngine
from tests.support.request_mixes import MixShape, random_asks
from tests.support.runners import make_model, make_runner
from tests.support.schedulers import LinearTimes
from tests.support.tiny_models import tiny_config

from twinflow.runtime.config import EngineConfig
from twinflow.runtime.models.base import Model
from twinflow.runtime.models.config import ModelConfig, MoEConfig
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.draft import Draft
from twinflow.runtime.speculative.drafters.base import (
    DraftedSequence,
    Drafter,
    DraftQuery,
    LikelyNext,
    Outlook,
)
from twinflow.runtime.speculative.drafters.draft_model import DraftModelDrafter
from twinflow.runtime.speculative.drafters.registry import DrafterSetup, create_drafter

pytestmark = pytest.mark.slow

VOCAB = 131
SHAPE = MixShape(vocab_size=VOCAB, longest_prompt=40, most_tokens=24)
ASKS = random_asks(10, SHAPE, seed=5)
CONFIGS: dict[str, ModelConfig] = {
    "gqa": tiny_config(num_layers=3),
    "moe": tiny_config(
        "Qwen3MoeForCausalLM",
        num_layers=2,
        moe=MoEConfig(layers=(0, 1), num_experts=6, experts_per_token=3, expert_size=28),
    ),
    "mla": tiny_config("DeepseekV2ForCausalLM"),
    "native": tiny_config(num_layers=2),
}


@cache
def model(name: str) -> Model:
    return make_model(
        CONFIGS[name], kernels=kernels_named("native" if name == "native" else "torch")
    )


def engine_config(**changes: object) -> EngineConfig:
    settings: dict[str, object] = {
        "max_model_len": 96, "num_blocks": 100, "max_num_batched_tokens": 64, "max_num_seqs": 8,
        "num_speculative_tokens": 4, "check_steps": True,
    }  # fmt: skip
    return EngineConfig(**(settings | changes))  # type: ignore[arg-type]


@cache
def alone(name: str) -> ModelEngine:
    """Each request by itself, without a prefix cache; has been played."""
    made = ModelEngine.build(
        model(name),
        engine_config(max_num_seqs=1, enable_prefix_caching=False, num_speculative_tokens=0),
    )
    made.play(ASKS, seed=0)
    return made


@dataclass
class Foresight:
    """Knows what is going to be said, and makes mistakes now and then."""

    outputs: dict[str, list[int]]
    likely_tokens: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(3))

    def propose(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        return [self._foresee(query) for query in queries]

    def _foresee(self, query: DraftQuery) -> Draft:
        name = query.sequence.request_id
        done = query.sequence.num_tokens - len(ASKS[int(name)].prompt)
        tokens = self.outputs[name][done : done + self.chance.randint(0, query.limit)]
        if tokens and self.chance.random() < 0.4:
            tokens[self.chance.randrange(len(tokens))] = self.chance.randrange(VOCAB)
        return Draft.chain(tokens)

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        return Outlook()

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        raise AssertionError("nobody asked to be told")

    def forget(self, sequence: DraftedSequence) -> None:
        pass


class BranchingForesight(Foresight):
    """Knows what is going to be said, and hides it in a tree: in its first, last or no branch."""

    def _foresee(self, query: DraftQuery) -> Draft:
        chain = super()._foresee(replace(query, limit=(query.limit + 1) // 2)).tokens
        tokens: list[int] = []
        parents: list[int] = []
        above = 0
        for token in chain:
            other = (token + self.chance.randrange(1, VOCAB)) % VOCAB
            tokens += self.chance.choice([[token, other], [other, token]])
            parents += [above, above]
            # Mostly on from where the truth may be; a path that has died may be the longer one.
            straight = self.chance.random() < 0.9
            above = 1 + max(i for i, t in enumerate(tokens) if (t == token) == straight)
        return Draft(tuple(tokens), tuple(parents)).shortened(query.limit)


def drafter(method: str, name: str) -> Drafter:
    if method == "foresight":
        return Foresight(alone(name).done.tokens)
    if method == "trees":
        return BranchingForesight(alone(name).done.tokens)
    if method == "draft_model":
        runner = make_runner(model(name), num_blocks=40, block_size=4, max_num_tokens=16)
        return DraftModelDrafter(runner, Sampler(VOCAB), vocab_size=VOCAB, max_rows=16)
    config = SpeculativeConfig(method=method, num_speculative_tokens=4)
    return create_drafter(DrafterSetup(config, VOCAB, lambda _: drafter("foresight", name)))


TIGHT = {"num_blocks": 20, "block_size": 4, "max_model_len": 64, "max_num_seqs": 6}
TREES = {"num_speculative_tokens": 7}
CASES = [
    ("gqa", "foresight", {}),
    ("gqa", "foresight", {"scheduler": "layered", "tbt_objective": 0.1}),
    ("gqa", "foresight", TIGHT),
    ("gqa", "ngram", {"max_num_seqs": 1}),
    ("gqa", "suffix", {}),
    ("gqa", "token_recycling", {}),
    ("gqa", "draft_model", {"max_num_seqs": 4}),
    ("moe", "foresight", {"scheduler": "layered", "tbt_objective": 8.0}),
    ("mla", "foresight", {"max_num_batched_tokens": 40}),
    ("gqa", "trees", TREES),
    ("gqa", "trees", TREES | TIGHT | {"block_size": 2, "num_blocks": 40}),
    ("moe", "trees", TREES | {"scheduler": "layered", "tbt_objective": 8.0}),
    ("mla", "trees", TREES | {"block_size": 4, "num_blocks": 200}),
    ("native", "trees", TREES | {"block_size": 4, "num_blocks": 200}),
]


@pytest.mark.parametrize(("name", "method", "changes"), CASES, ids=lambda value: str(value)[:24])
def test_proposals_change_no_token(name: str, method: str, changes: dict[str, object]) -> None:
    times = LinearTimes(step=0.0, layer=0.0, row=0.1)
    made = ModelEngine.build(model(name), engine_config(**changes), times, drafter(method, name))
    made.play(ASKS, seed=1)
    assert made.done.tokens == alone(name).done.tokens
    assert made.done.logprobs == alone(name).done.logprobs
    account = made.engine.counters.speculation
    assert account.accepted_tokens > 0
    # The model that is served, drafting for itself, is never wrong; everybody else is at times.
    assert (account.draft_tokens == account.accepted_tokens) == (method == "draft_model")
    if changes.get("max_model_len") == TIGHT["max_model_len"]:
        assert made.engine.counters.preemptions > 0
    if method in ("foresight", "trees"):
        assert len(account.accepted_at) > 2
