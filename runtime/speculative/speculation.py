"""A drafter at work beside a model: proposals before a step, verdicts and lessons after it.

Tokens are verified by the rule `coupled`: the model samples behind every proposed token as if it
were the sequence's, with the noise of that position, and a proposal is followed as long as it
agrees. So a sequence gets the tokens that it gets without proposals, greedy or not.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog
import torch
from torch import Tensor

from twinflow.protos.errors import ConfigError
from twinflow.runtime.executor import Work
from twinflow.runtime.outputs import NumericalFault, SampledRun, SampledToken
from twinflow.runtime.request import Request
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.draft import NOTHING, Draft, Siblings
from twinflow.runtime.speculative.drafters.base import Drafter, DraftQuery, LikelyNext, Outlook
from twinflow.runtime.speculative.drafters.draft_kv import DraftKV
from twinflow.runtime.speculative.drafters.draft_model import DraftModelDrafter
from twinflow.runtime.speculative.drafters.registry import DrafterSetup, create_drafter
from twinflow.runtime.speculative.verification.matching import follow

Answer = TypeVar("Answer")


class Speculation:
    """Guards a drafter, which is asked on one thread and told on another.

    A drafter that fails is not asked again: requests go on without proposals. It still hears of
    those that are over, so that it gives back what it holds for them.

    Args:
        drafter: proposes chains or trees.

    Attributes:
        failure: what the drafter has failed with, if it has.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._lock = threading.Lock()
        self.failure: Exception | None = None

    @property
    def draft_kv(self) -> DraftKV | None:
        """KV of the drafter; None if it has none. For the thread that asks for proposals."""
        return self._drafter.kv if isinstance(self._drafter, DraftModelDrafter) else None

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> Sequence[Draft]:
        """See `Executor.propose`."""
        queries = [DraftQuery(r, limit) for r, limit in zip(requests, limits, strict=True)]
        nothing: Sequence[Draft] = [NOTHING] * len(queries)
        return self._ask(lambda: _checked(self._drafter.propose(queries), queries), nothing)

    def outlook(self, requests: Sequence[Request], nodes: int) -> Outlook:
        """See `Executor.outlook`."""
        return self._ask(lambda: self._drafter.outlook(requests, nodes), Outlook())

    def likeliest(self, logits: Tensor) -> Tensor | None:
        """What the drafter will hear of logits.

        Args:
            logits: fp32 [rows, vocabulary], as the model made them.

        Returns:
            int64 [rows, likely tokens], best first; None if it listens to nothing.
        """
        count = min(self._drafter.likely_tokens, logits.shape[-1])
        if not count or not len(logits) or self.failure is not None:
            return None
        return torch.topk(logits, count, dim=-1).indices

    def observe(
        self, work: Sequence[Work], runs: Sequence[SampledRun], likeliest: Tensor | None
    ) -> None:
        """Tell the drafter what the model found likely.

        Args:
            work: row groups that sample.
            runs: what each of their sequences gets.
            likeliest: behind each of their sampled rows; see `likeliest`.
        """
        if likeliest is None:
            return
        rows = [
            (token, item.request.cache_salt, true)
            for item, run in zip(work, runs, strict=True)
            for token, true in zip(
                item.token_ids[-item.group.sampled_rows :], _true_rows(item, run), strict=True
            )
        ]
        likely = [
            LikelyNext(token, tuple(ids), salt, true)
            for (token, salt, true), ids in zip(rows, likeliest.tolist(), strict=True)
        ]
        self._ask(lambda: self._drafter.observe(likely), None)

    def forget(self, request: Request) -> None:
        """The request is over."""
        self._ask(lambda: self._drafter.forget(request), None, always=True)

    def release(self, request: Request) -> None:
        """The request has lost its KV, and whether it goes on soon is not known: the drafter gives
        its own of it back, too."""
        if self.draft_kv is not None:
            self.forget(request)

    def _ask(
        self, call: Callable[[], Answer], otherwise: Answer, *, always: bool = False
    ) -> Answer:
        """Call the drafter, once at a time, and only where it must be after it has failed."""
        with self._lock:
            if self.failure is not None and not always:
                return otherwise
            try:
                return call()
            except Exception as error:  # noqa: BLE001 - no guess is worth a request
                structlog.get_logger().exception("the drafter failed: nothing is proposed any more")
                self._give_up(error)
                return otherwise

    def _give_up(self, error: Exception) -> None:
        self.failure = error
        if self.draft_kv is not None:
            self.draft_kv.usable = False


def create_speculation(
    config: SpeculativeConfig | None,
    vocab_size: int,
    load: Callable[[SpeculativeConfig], Drafter],
) -> Speculation | None:
    """What was chosen; None if nothing was.

    Args:
        config: the choice.
        vocab_size: of the model whose tokens are guessed.
        load: loads the drafter that has a model.

    Raises:
        ConfigError: there is no such drafter, or its settings mean nothing.
    """
    if config is None:
        return None
    try:
        return Speculation(create_drafter(DrafterSetup(config, vocab_size, load)))
    except ValueError as error:
        raise ConfigError(f"--speculative-config: {error}") from None


def _checked(drafts: Sequence[Draft], queries: Sequence[DraftQuery]) -> Sequence[Draft]:
    """Proposals that a step can verify: one for each query, none too long, no node twice.

    Children that were drawn independently may be twins: how often a token was drawn counts.
    """
    if len(drafts) != len(queries):
        raise ValueError(f"{len(queries)} queries were answered with {len(drafts)} proposals")
    for draft, query in zip(drafts, queries, strict=True):
        twice = draft.siblings is not Siblings.INDEPENDENT and draft.has_twins
        if len(draft) > query.limit or twice:
            name = query.sequence.request_id
            raise ValueError(
                f"the proposal to request {name} has {len(draft)} tokens, where {query.limit} are "
                f"allowed, or the same token twice behind a node"
            )
    return drafts


def _true_rows(item: Work, run: SampledRun) -> list[bool]:
    """Which sampled rows of a group are of tokens that its sequence has now."""
    accepted = [] if isinstance(run, NumericalFault) else [one.token_id for one in run[:-1]]
    nodes = {0, *item.draft.path(item.draft.along(accepted))}
    return [row in nodes for row in range(item.group.sampled_rows)]


def judge(draft: Draft, rows: Sequence[SampledToken | NumericalFault]) -> SampledRun:
    """What a sequence gets.

    Args:
        draft: what was proposed to it.
        rows: the token that the model chose behind each node.

    Returns:
        At least one token. A fault behind the sequence itself is the result; one behind a proposed
        token is as if that token had not been proposed, and will be met again.
    """
    if not draft.tokens:  # as in most steps of most engines
        (row,) = rows
        return row if isinstance(row, NumericalFault) else (row,)
    healthy: list[SampledToken] = []
    for row in rows:
        if isinstance(row, NumericalFault):
            break
        healthy.append(row)
    else:
        return _along(draft, healthy)
    return _along(draft.shortened(len(healthy) - 1), healthy) if healthy else row


def _along(draft: Draft, rows: Sequence[SampledToken]) -> tuple[SampledToken, ...]:
    verdict = follow(draft, lambda node: rows[node].token_id)
    return (rows[0], *(rows[node] for node in verdict.path))
