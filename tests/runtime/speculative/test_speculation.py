"""A drafter at work: what it is asked and told, and what its failures mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tests.support.engines import NUM_LAYERS, create_request

from twinflow.protos.errors import ConfigError
from twinflow.runtime.executor import Work
from twinflow.runtime.outputs import NumericalFault, SampledToken
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.draft import NOTHING, Draft, Siblings
from twinflow.runtime.speculative.drafters.base import (
    DraftedSequence,
    DraftQuery,
    LikelyNext,
    Outlook,
)
from twinflow.runtime.speculative.drafters.ngram import NgramConfig, NgramDrafter
from twinflow.runtime.speculative.drafters.registry import drafter_names, register_drafter
from twinflow.runtime.speculative.speculation import Speculation, create_speculation
from twinflow.runtime.step_plan import RowGroup, RowKind


@dataclass
class Scripted:
    """Answers with what it was given."""

    answer: Callable[[], list[Draft]]
    likely_tokens: int = 2
    heard: list[LikelyNext] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    def propose(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        return self.answer()

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        return Outlook()

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        self.heard.extend(likely)

    def forget(self, sequence: DraftedSequence) -> None:
        self.forgotten.append(sequence.request_id)


def broken() -> list[Draft]:
    raise KeyError("a drafter with a fault")


@pytest.mark.parametrize(
    "answer",
    [
        broken,
        list,
        lambda: [Draft.chain([1, 2, 3])],
        lambda: [Draft((1, 1), (0, 0))],
    ],
    ids=["raises", "too few", "too long", "twins"],
)
def test_a_drafter_that_fails_is_not_asked_again(answer: Callable[[], list[Draft]]) -> None:
    drafter = Scripted(answer)
    speculation, request = Speculation(drafter), create_request(4)
    assert speculation.propose([request], [2]) == [NOTHING]
    assert speculation.failure is not None
    drafter.answer = lambda: [Draft.chain([1])]
    assert speculation.propose([request], [2]) == [NOTHING]
    speculation.release(request)
    assert drafter.forgotten == [], "it has no KV to give back"
    speculation.forget(request)
    assert drafter.forgotten == [request.request_id], "what it holds for requests is given back"


def test_tokens_that_were_drawn_independently_may_be_twins() -> None:
    twins = Draft((1, 1), (0, 0), Siblings.INDEPENDENT, {0: np.array([0.0, 1.0])})
    speculation = Speculation(Scripted(lambda: [twins]))
    assert speculation.propose([create_request(4)], [2]) == [twins]
    assert speculation.failure is None


def test_a_drafter_hears_what_was_likely_behind_each_sampled_row() -> None:
    drafter = Scripted(list)
    request = create_request([10, 11, 12], cache_salt="mine", output_token_ids=[13])
    group = RowGroup("r", 3, 3, 0, NUM_LAYERS, RowKind.VERIFY, samples=True, drafted=2)
    work = Work(request, group, [1], Draft.chain([20, 21]))
    logits = torch.tensor([[0.0, 3.0, 2.0], [9.0, 1.0, 2.0], [0.0, 1.0, 5.0]])
    speculation = Speculation(drafter)
    run = (SampledToken(20), SampledToken(5))
    speculation.observe([work], [run], speculation.likeliest(logits))
    assert drafter.heard == [
        LikelyNext(13, (1, 2), "mine"),
        LikelyNext(20, (0, 2), "mine"),
        LikelyNext(21, (2, 1), "mine", true=False),
    ]
    drafter.heard.clear()
    speculation.observe([work], [NumericalFault(3)], speculation.likeliest(logits))
    assert [row.true for row in drafter.heard] == [True, False, False]


def test_names_of_drafters() -> None:
    assert drafter_names() == ["draft_model", "easyspec", "ngram", "suffix", "token_recycling"]
    with pytest.raises(ValueError, match="already registered"):
        register_drafter("ngram", lambda setup: NgramDrafter(NgramConfig()))

    def load(config: SpeculativeConfig) -> NgramDrafter:
        raise AssertionError("nobody asked for a model")

    assert create_speculation(None, 10, load) is None
    with pytest.raises(ConfigError, match=r"--speculative-config: method 'ngrams' is unknown; did"):
        create_speculation(SpeculativeConfig(method="ngrams"), 10, load)
