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

Where prefill turns from memory to arithmetic, and how long company is worth waiting for, follows
from step times (`Boundary`), or is what was measured elsewhere if these are not known.

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

from twinflow.runtime.cost.base import PhaseLoad, SegmentLoad, StepLoad, StepTimes
from twinflow.runtime.request import Request, RequestStatus
from twinflow.runtime.schedulers.base import SchedulerLimits, SchedulerState
from twinflow.runtime.schedulers.draft import Draft
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.step_plan import StepPlan


@dataclass(frozen=True, slots=True)
class Boundary:
    """What is short, and what waiting is worth.

    Without step times it is what the paper used on an H200: 256 tokens, where it measured the turn
    from memory to arithmetic between 150 and 512, and a window that paid.

    Attributes:
        longest_short: tokens; longer prompts are long.
        window: seconds that a short prompt waits for others at most.
    """

    longest_short: int = 256
    window: float = 0.006

    @classmethod
    def of(cls, times: StepTimes | None, limits: SchedulerLimits) -> "Boundary":
        """What follows from step times.

        A step of one row takes what a step costs in any case, mostly for reading the weights. As
        many tokens as take that long to compute are the boundary (section 3: reading and arithmetic
        take the same time there); a token's time is what it adds to a step that is full. To wait
        longer than for such a step costs more than sharing one can save.

        Args:
            times: predicts steps; None if they are not known.
            limits: how large steps are.
        """
        if times is None:
            return cls()
        most = limits.max_num_batched_tokens
        fixed, half, full = (
            times.seconds(_prompt_step(0, rows, limits)) for rows in (1, (most + 1) // 2, most)
        )
        token = (full - half) / max(1, most // 2)
        longest = most if fixed >= most * token else int(fixed / token)
        return cls(max(1, longest), fixed)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt and the tokens of it that are still to be computed here."""

    request: Request
    tokens: int


class LengthAwareScheduler:
    """See the module.

    Args:
        setup: of the policy.
        boundary: of short and long prompts; None for what follows from the setup's step times.
    """

    def __init__(self, setup: SchedulerSetup, boundary: Boundary | None = None) -> None:
        self._setup = setup
        boundary = boundary or Boundary.of(setup.times, setup.limits)
        self._longest_short = boundary.longest_short
        self._window = boundary.window

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
        start = prompt.request.num_tokens - prompt.tokens
        return end - times.seconds(_prompt_step(start, prompt.tokens, self._setup.limits))


def _prompt_step(start: int, rows: int, limits: SchedulerLimits) -> StepLoad:
    """A step that computes some rows of one prompt, and samples."""
    segment = SegmentLoad(limits.num_layers, PhaseLoad.of(start, rows), PhaseLoad())
    return StepLoad((segment,), 1)


def _share(draft: Draft, prompts: Iterable[_Prompt], most: int | None = None) -> None:
    """Give the rows that are left to prompts in order; the first one gets `most` of them."""
    limit = draft.budget if most is None else most

    def give(request: Request, start: int) -> bool:
        nonlocal limit
        least, limit = limit, draft.budget
        return draft.add_chunk(request, start, least)

    draft.fill([prompt.request for prompt in prompts], give)
