"""Length-aware batching for prefill (LAPS, arXiv 2601.11589, section 4).

Short prompts are bound by memory: computing several of them takes hardly longer than one. Long
prompts are bound by arithmetic, and a short one behind a long one waits for nothing. So there are
two classes, by the tokens still to be computed, and a step serves one of them:

    short    together, once enough of them have come or their window is over
    long     in order, in chunks of a whole step, while short ones gather

A window is over

    - when the short prompts fill a step, or the seats that are left,
    - when the oldest of them has waited for the longest window,
    - or when one of them must begin now to meet its objective for the first token.

It is decided from arrival times alone, so that a policy needs no timer: where there is nothing to
do but to wait, the plan is empty and says when to ask again. Rows of decoding requests are there
in spite of all that; with them a step is made anyway, and nobody waits for company.

Short prompts could come for ever. From the moment at which the first long one must begin to meet
its objective, or at once if there is none, it comes before them and gets half of every step: l
tokens of it take no more than 2 l / (rows of a step) steps.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from twinflow.runtime.cost.base import PhaseLoad, SegmentLoad, StepLoad
from twinflow.runtime.request import Request, RequestStatus
from twinflow.runtime.schedulers.base import SchedulerState
from twinflow.runtime.schedulers.draft import Draft
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.step_plan import StepPlan

# Where prefill turns from memory to arithmetic; 150 to 512 tokens were measured (section 3).
_LONGEST_SHORT = 256
# Longest window. Its gain is a larger batch, its price is paid by every short prompt.
_WINDOW_S = 0.006


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt and the tokens of it that are still to be computed here."""

    request: Request
    tokens: int


class LengthAwareScheduler:
    """See the module.

    Args:
        setup: of the policy.
        longest_short: tokens; longer prompts are long.
        window: seconds that a short prompt waits for others at most.
    """

    def __init__(
        self,
        setup: SchedulerSetup,
        *,
        longest_short: int = _LONGEST_SHORT,
        window: float = _WINDOW_S,
    ) -> None:
        self._setup = setup
        self._longest_short = longest_short
        self._window = window

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        """See `Scheduler.plan`."""
        draft = Draft(self._setup, state)
        draft.decode()
        prompts = [_Prompt(r, self._tokens(r, state)) for r in draft.prompts()]
        short = [p for p in prompts if p.tokens <= self._longest_short]
        long = [p for p in prompts if p.tokens > self._longest_short]
        due = self._due(short, draft)
        if short and due > now and not draft.groups:
            _share(draft, long)
            return draft.plan(idle_until=None if draft.groups else due)
        if long and short and now >= self._latest_start(long[0], -math.inf):
            rest = draft.budget - sum(p.tokens for p in short)
            _share(draft, [long[0], *short], most=max(rest, -(-draft.budget // 2)))
        else:
            _share(draft, short or long)
        return draft.plan()

    def _tokens(self, request: Request, state: SchedulerState) -> int:
        if request.fetch:
            return 0
        tokens = request.num_uncomputed
        if request.status is RequestStatus.WAITING and tokens > self._longest_short:
            tokens -= state.blocks.match(request).num_tokens
        return tokens

    def _due(self, short: Iterable[_Prompt], draft: Draft) -> float:
        """When the window of the short prompts is over if nobody comes meanwhile."""
        ends, tokens = [], 0
        for prompt in short:
            tokens += prompt.tokens
            latest = self._latest_start(prompt, math.inf)
            ends.append(min(prompt.request.arrival + self._window, latest))
        full = tokens >= draft.budget or len(ends) >= draft.seats
        return -math.inf if full else min(ends, default=math.inf)

    def _latest_start(self, prompt: _Prompt, otherwise: float) -> float:
        """When a prompt must begin to meet its objective; `otherwise` if there is none."""
        objective, times = self._setup.ttft_objective, self._setup.times
        if objective is None:
            return otherwise
        end = prompt.request.arrival + objective
        if times is None:
            return end
        load = PhaseLoad.of(prompt.request.num_tokens - prompt.tokens, prompt.tokens)
        segment = SegmentLoad(self._setup.limits.num_layers, load, PhaseLoad())
        return end - times.seconds(StepLoad((segment,), 1))


def _share(draft: Draft, prompts: Iterable[_Prompt], most: int | None = None) -> None:
    """Give the rows that are left to prompts in order; the first one gets `most` of them."""
    limit = draft.budget if most is None else most

    def give(request: Request, start: int) -> bool:
        nonlocal limit
        least, limit = limit, draft.budget
        return draft.add_chunk(request, start, least)

    draft.fill([prompt.request for prompt in prompts], give)
