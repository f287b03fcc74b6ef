"""Engines over a tiny model that verify by a rule, right or wrong, with a drafter of any kind.

The engine's own rule follows the target's choices. Here any rule of `verification` decides in its
place, over the same rows, blocks and sampling states.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tests.support.engines import Collected, ManualClock
from tests.support.runners import make_model, make_runner
from tests.support.speculation import Tokens, ToyModels, propose
from tests.support.tiny_models import tiny_config
from torch import Tensor

from twinflow.runtime.config import EngineConfig
from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import Work
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.outputs import SampledRun, SampledToken
from twinflow.runtime.request import Request
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.sampling.modifiers import apply_modifiers
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.schedulers import create_scheduler
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.speculative.draft import Draft, FloatArray, Siblings
from twinflow.runtime.speculative.drafters.base import (
    DraftedSequence,
    DraftQuery,
    LikelyNext,
    Outlook,
)
from twinflow.runtime.speculative.speculation import Speculation
from twinflow.runtime.speculative.verification.base import VerificationRule
from twinflow.runtime.speculative.verification.chance import CounterChance

VOCAB = 4
PROMPT = [1, 3, 0, 2, 2]
PENALTY = 0.8
# Tokens looked at, and tokens generated: the last of the former may come behind an accepted leaf.
LENGTH, MOST = 4, 6
SEATS = 64


@dataclass(frozen=True)
class Mistake:
    """What is done wrong.

    Attributes:
        claim: says something else about a proposal than is true.
        bonus: the distribution behind a leaf is the drafter's.
    """

    claim: Callable[[Draft], Draft] = lambda draft: draft
    bonus: bool = False


@dataclass(frozen=True)
class _Rows:
    """The target behind the nodes of a proposal, from their rows."""

    odds: FloatArray
    draft: Draft
    bonus: Callable[[Tokens], FloatArray] | None

    def token(self, node: int) -> int:
        raise AssertionError("rules that draw do not ask for the target's choice")

    def probabilities(self, node: int) -> FloatArray:
        if self.bonus is not None and self.draft.tokens and not self.draft.children(node):
            return self.bonus(tuple(map(self.draft.token, self.draft.path(node))))
        odds: FloatArray = self.odds[node]
        return odds


class RuledExecutor(ModelExecutor):
    """Verifies by a rule."""

    rule: VerificationRule
    mistake: Mistake
    models: ToyModels

    def _verdicts(self, sampling: Sequence[Work], logits: Tensor) -> list[SampledRun]:
        states = [state for item in sampling for state in self._states_along(item)]
        apply_modifiers(logits, states)
        odds = iter(logits.double().softmax(dim=-1).numpy())
        return [
            self._verdict(item, np.stack(list(itertools.islice(odds, item.group.sampled_rows))))
            for item in sampling
        ]

    def _verdict(self, item: Work, odds: FloatArray) -> SampledRun:
        draft, request = self.mistake.claim(item.draft), item.request
        behind = replace(self.models, begun=tuple(request.output_token_ids))
        target = _Rows(odds, draft, behind.drafter if self.mistake.bonus else None)
        chance = CounterChance(request.params.seed or 0, request.num_tokens)
        tokens = self.rule.verify(draft, target, chance).tokens(draft)
        return tuple(map(SampledToken, tokens))


@dataclass
class ToyDrafter:
    """Proposes trees of one shape, of tokens that have little to do with the target."""

    models: ToyModels
    siblings: Siblings
    parents: tuple[int, ...]
    likely_tokens: int = 0

    def propose(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        return [self._draft(query) for query in queries]

    def _draft(self, query: DraftQuery) -> Draft:
        sequence, begun = query.sequence, len(PROMPT)
        output = tuple(sequence.tokens(begun, sequence.num_tokens - begun))
        chance = CounterChance(2**40 + (sequence.params.seed or 0), sequence.num_tokens)
        parents = self.parents[: query.limit]
        return propose(replace(self.models, begun=output), self.siblings, parents, chance)

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        return Outlook()

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        raise AssertionError("nobody asked to be told")

    def forget(self, sequence: DraftedSequence) -> None:
        pass


def runner() -> ModelRunner:
    """Of a model whose distributions are not flat."""
    return make_runner(make_model(tiny_config(num_layers=2, vocab_size=VOCAB)), 400, 4, 512)


def engine(
    rule: VerificationRule | None, drafter: ToyDrafter, mistake: Mistake | None = None
) -> Engine:
    """An engine that verifies by a rule; None for its own."""
    made = runner()
    kind = ModelExecutor if rule is None else RuledExecutor
    executor = kind(
        made,
        Sampler(VOCAB, "cpu"),
        vocab_size=VOCAB,
        layers_per_unit=2,
        speculation=Speculation(drafter),
    )
    if isinstance(executor, RuledExecutor) and rule is not None:
        executor.rule, executor.mistake = rule, mistake or Mistake()
        executor.models = drafter.models
    config = EngineConfig(
        max_model_len=32,
        num_blocks=400,
        block_size=4,
        max_num_seqs=SEATS,
        max_num_batched_tokens=512,
        num_speculative_tokens=len(drafter.parents),
    )
    blocks = BlockManager(400, 4, model_fingerprint="model", layout_digest="layout")
    scheduler = create_scheduler(config.scheduler, SchedulerSetup.of(config, 2))
    return Engine(config, executor, blocks, scheduler, num_layers=2, clock=ManualClock())


def sample(made: Engine, trials: int) -> dict[Tokens, int]:
    """How often each beginning comes out for so many seeds."""
    done = Collected()
    for seed in range(trials):
        params = SamplingParams(seed=seed, max_tokens=MOST, frequency_penalty=PENALTY)
        made.add_request(Request(request_id=str(seed), prompt_token_ids=PROMPT, params=params))
        # One full batch after the other: queues stay short.
        while made.runnable and (seed % SEATS == SEATS - 1 or seed == trials - 1):
            made.step()
            done.take(made)
    made.check_integrity()
    observed: dict[Tokens, int] = {}
    for tokens in done.tokens.values():
        key = tuple(tokens[:LENGTH])
        observed[key] = observed.get(key, 0) + 1
    return observed


def expected() -> dict[Tokens, float]:
    """The probability of each beginning, from the model's logits behind every one of them."""
    made = runner()
    law: dict[Tokens, float] = {(): 1.0}
    for length in range(LENGTH):
        following: dict[Tokens, float] = {}
        for begun, probability in law.items():
            rows = SequenceRows([*PROMPT, *begun], 0, [1, 2, 3], True, len(PROMPT))
            logits = made.forward([rows])[0].double()
            logits -= PENALTY * torch.tensor([begun.count(token) for token in range(VOCAB)])
            odds = logits.softmax(dim=-1).tolist()
            following |= {(*begun, t): probability * odds[t] for t in range(VOCAB)}
        law = following
        assert len(law) == VOCAB ** (length + 1)
    return law
