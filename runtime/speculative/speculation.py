"""A drafter at work beside a model: proposals before a step, verdicts and lessons after it.

Tokens are verified by the rule `coupled`: the model samples behind every proposed token as if it
were the sequence's, with the noise of that position, and a proposal is followed as long as it
agrees. So a sequence gets the tokens that it gets without proposals, greedy or not.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from twinflow.protos.errors import ConfigError
from twinflow.runtime.executor import Work
from twinflow.runtime.outputs import NumericalFault, SampledRun, SampledToken
from twinflow.runtime.request import Request
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.draft import Draft
from twinflow.runtime.speculative.drafters.base import Drafter, DraftQuery, LikelyNext
from twinflow.runtime.speculative.drafters.registry import create_drafter
from twinflow.runtime.speculative.verification.matching import follow


class Speculation:
    """Guards a drafter, which is asked on one thread and told on another.

    Args:
        drafter: proposes chains.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._lock = threading.Lock()

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> Sequence[Draft]:
        """See `Executor.propose`.

        Raises:
            ValueError: a proposal branches; the rows of a step are those of sequences.
        """
        queries = [DraftQuery(r, limit) for r, limit in zip(requests, limits, strict=True)]
        with self._lock:
            drafts = self._drafter.propose(queries)
        for request, draft in zip(requests, drafts, strict=True):
            if not draft.is_chain:
                raise ValueError(f"the proposal to request {request.request_id} branches")
        return drafts

    def observe(self, work: Sequence[Work], logits: Tensor) -> None:
        """Tell the drafter what the model found likely.

        Args:
            work: row groups that sample.
            logits: fp32 [their sampled rows, vocabulary], as the model made them.
        """
        count = min(self._drafter.likely_tokens, logits.shape[-1])
        if not count or not work:
            return
        likeliest = torch.topk(logits, count, dim=-1).indices.tolist()
        rows = [
            (token, item.request.cache_salt)
            for item in work
            for token in item.token_ids[-item.group.sampled_rows :]
        ]
        likely = [
            LikelyNext(token, tuple(ids), salt)
            for (token, salt), ids in zip(rows, likeliest, strict=True)
        ]
        with self._lock:
            self._drafter.observe(likely)

    def forget(self, request: Request) -> None:
        """The request is over."""
        with self._lock:
            self._drafter.forget(request)


def create_speculation(config: SpeculativeConfig | None, vocab_size: int) -> Speculation | None:
    """What was chosen; None if nothing was.

    Args:
        config: the choice.
        vocab_size: of the model whose tokens are guessed.

    Raises:
        ConfigError: there is no such drafter, or its settings mean nothing.
    """
    try:
        return None if config is None else Speculation(create_drafter(config, vocab_size))
    except ValueError as error:
        raise ConfigError(f"--speculative-config: {error}") from None


def judge(draft: Draft, rows: Sequence[SampledToken | NumericalFault]) -> SampledRun:
    """What a sequence gets.

    Args:
        draft: what was proposed to it.
        rows: the token that the model chose behind each node.

    Returns:
        At least one token. A fault behind the sequence itself is the result; one behind a proposed
        token is as if that token had not been proposed, and will be met again.
    """
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
