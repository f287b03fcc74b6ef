"""A sequence on its way through an engine.

State only: what a request is waiting for, its tokens and its counters. Blocks belong to the block
manager, sampling state to the sampler, decisions to the scheduler.

        ┌────────► RECEIVING ──────┐        (KV comes from another worker)
     WAITING ─────────────────► RUNNING ──► FINISHED
        ▲           preempted, │   └──────► HELD ──► FINISHED
        └──────────  recompute ┘            (prefilled for another worker)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from twinflow.runtime.outputs import PhaseTime
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.runtime.speculative.draft import NOTHING, Draft


class RequestStatus(IntEnum):
    """Where a request stands."""

    WAITING = 0
    RECEIVING = 1
    RUNNING = 2
    HELD = 3
    FINISHED = 4


class Stopwatch:
    """Durations of consecutive phases: entering one ends the one before."""

    def __init__(self, phase: str, now: float) -> None:
        self._phase = phase
        self._since = now
        self._phases: list[PhaseTime] = []
        self._reported = 0

    def enter(self, phase: str, now: float) -> None:
        """End the current phase and start `phase`; entering the current one changes nothing."""
        if phase == self._phase:
            return
        self._phases.append(PhaseTime(self._phase, now - self._since))
        self._phase, self._since = phase, now

    def insert(self, phases: Sequence[PhaseTime], now: float) -> None:
        """Replace the beginning of the current phase by what another worker measured in it.

        Measurements that add up to more than the phase (their clock is not ours) are scaled down.
        """
        elapsed, theirs = now - self._since, sum(phase.seconds for phase in phases)
        scale = min(1.0, elapsed / theirs) if theirs > 0 else 0.0
        self._phases.extend(PhaseTime(p.name, p.seconds * scale) for p in phases)
        self._since += theirs * scale

    def total(self, now: float) -> tuple[PhaseTime, ...]:
        """All phases up to now, the current one included."""
        return (*self._phases, PhaseTime(self._phase, now - self._since))

    def news(self, now: float) -> tuple[PhaseTime, ...]:
        """The same if a phase has ended since it was last asked for, else nothing."""
        if self._reported == len(self._phases):
            return ()
        self._reported = len(self._phases)
        return self.total(now)


@dataclass(frozen=True, slots=True)
class Wave:
    """Where a chunk of a sequence is that crosses the layers in several steps.

    Attributes:
        token_start: position of its first token.
        token_count: tokens.
        next_layer: those before are done.
        groups: into how many groups the layers are cut for it.
    """

    token_start: int
    token_count: int
    next_layer: int
    groups: int


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One sequence to be generated.

    Attributes:
        request_id: unique within the engine.
        prompt_token_ids: at least one token.
        params: with n = 1, a seed and max_tokens.
        eos_token_ids: end the sequence unless params.ignore_eos.
        priority: lower runs first.
        cache_salt: part of the prefix's name.
        fetch_from: another worker computes the prompt and its KV is received; what it says about
            that worker is for whoever drives the engine.
        hold: compute the prompt and the first token only, then keep the blocks until released.
        probe: neither cached prefixes nor a recomputation after a failed fetch may serve it.
        output_token_ids: tokens generated so far, here or in an earlier attempt.
        num_computed: leading tokens whose KV is complete in all layers.
        wave: the chunk behind those tokens that has crossed some of the layers, if there is one.
        draft: what was proposed to come next; the step that verifies it uses it up.
        speculation: what became of the proposals.
        cached_tokens: prompt tokens that a prefix cache had, set at the first admission.
        status: where it stands.
        order: arrival number, set by the engine; breaks ties of priority.
        arrival: when the engine took it in, on the engine's clock.
        last_token_at: when it got its latest token, on the same clock.
        computing: rows of it are in a step that is under way.
        doomed: finished or aborted while its blocks still receive, or its rows are being computed;
            everything is given back afterwards.
        prefix_names: names of its leading full blocks, as far as they were needed; they stay
            true for ever, because tokens are only appended.
        stopwatch: where its time went, set by the engine.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str = ""
    fetch_from: object | None = None
    hold: bool = False
    probe: bool = False
    output_token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    wave: Wave | None = None
    draft: Draft = NOTHING
    speculation: SpeculationAccount = field(default_factory=SpeculationAccount)
    cached_tokens: int | None = None
    status: RequestStatus = RequestStatus.WAITING
    order: int = 0
    arrival: float = 0.0
    last_token_at: float | None = None
    computing: bool = False
    doomed: bool = False
    prefix_names: list[bytes] = field(default_factory=list)
    stopwatch: Stopwatch = field(default_factory=lambda: Stopwatch("queue", 0.0))

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output."""
        return [*self.prompt_token_ids, *self.output_token_ids]

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_uncomputed(self) -> int:
        """Tokens whose KV is still to be computed; 1 while decoding."""
        # Asked several times for every row of a step, and so not of `num_tokens`.
        return len(self.prompt_token_ids) + len(self.output_token_ids) - self.num_computed

    @property
    def max_total_tokens(self) -> int:
        """Longest the sequence can get."""
        return len(self.prompt_token_ids) + (self.params.max_tokens or 0)

    @property
    def fetch(self) -> bool:
        """Whether another worker shall compute the prompt."""
        return self.fetch_from is not None

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key: who is served first."""
        return (self.priority, self.order)

    @property
    def ending_token_ids(self) -> frozenset[int]:
        """Every token that ends the sequence."""
        eos = () if self.params.ignore_eos else self.eos_token_ids
        return frozenset((*eos, *self.params.stop_token_ids))

    def tokens(self, start: int, count: int) -> Sequence[int]:
        """Tokens [start, start + count) of prompt and output."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : start - num_prompt + count]
        if start + count <= num_prompt:
            return self.prompt_token_ids[start : start + count]
        return self.token_ids[start : start + count]
