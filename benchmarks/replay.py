"""Engines that serve requests on time lines of their own, for benchmarks that compare them.

Steps are real, or those of a simulated executor; time passes only while one is computed, and
arrivals are placed on that time line. So several engines can take turns on one core, and none
counts what the others take. Front doors, processes and the network are no part of it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from twinflow.cluster.simulator.traces import Shape
from twinflow.runtime.engine import Engine
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams

Clock = Callable[[], float]
Arrivals = Sequence[tuple[float, Shape]]

# An engine with nothing to do, and nobody to come, is asked again after this.
_IDLE_S = 1.0


class Timeline:
    """A clock that runs only while something is computed; can be an engine's clock.

    Args:
        clock: seconds that computing takes.

    Attributes:
        now: seconds, without what is being computed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began: float | None = None
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds now."""
        running = 0.0 if self._began is None else self._clock() - self._began
        return self.now + running

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time passes meanwhile."""
        self._began = self._clock()
        try:
            yield
        finally:
            began, self._began = self._began, None
            self.now += self._clock() - began

    def advance(self, time: float) -> None:
        """Nothing happens until `time`, if that is to come."""
        self.now = max(self.now, time)


@dataclass(slots=True)
class Latencies:
    """Seconds, of requests on a time line.

    Attributes:
        ttft: from arrival to the first token.
        gaps: between consecutive tokens, of all requests.
        e2e: from arrival to the last token.
    """

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    e2e: list[float] = field(default_factory=list)


class Replay:
    """An engine and the requests that come to it.

    Args:
        engine: idle.
        arrivals: times in seconds, ascending, and requests.
        timeline: on which the engine's steps take place.
        vocab_size: tokens of prompts are drawn below it, the same ones for every engine.

    Attributes:
        timeline: see above.
        latencies: so far.
        steps: so far, with rows in them or not.
    """

    def __init__(
        self, engine: Engine, arrivals: Arrivals, timeline: Timeline, vocab_size: int
    ) -> None:
        self.timeline = timeline
        self.latencies = Latencies()
        self.steps = 0
        self._engine = engine
        self._coming = list(reversed(arrivals))
        self._vocab_size = vocab_size
        self._random = Random(0)
        self._due: dict[str, float] = {}
        self._latest: dict[str, float] = {}

    @property
    def done(self) -> bool:
        """Whether every request is over."""
        return not self._coming and not self._engine.runnable

    def run(self) -> Latencies:
        """Serve all requests."""
        while not self.done:
            self.step()
        return self.latencies

    def step(self) -> None:
        """Take in who has come by now, and let the engine take a step."""
        line = self.timeline
        if not self._engine.runnable:
            line.advance(self._coming[-1][0])
        while self._coming and self._coming[-1][0] <= line.now:
            self._take_in(*self._coming.pop())
        with line.running():
            progressed = self._engine.step()
        self.steps += 1
        self._note(line.now)
        if not progressed:
            pause = line.now + self._engine.idle_seconds(_IDLE_S)
            line.advance(min(pause, self._coming[-1][0]) if self._coming else pause)

    def _take_in(self, due: float, shape: Shape) -> None:
        request_id = str(len(self._due))
        self._due[request_id] = due
        tokens = [self._random.randrange(self._vocab_size) for _ in range(shape.input_tokens)]
        params = SamplingParams(
            temperature=0.0, max_tokens=shape.output_tokens, ignore_eos=True, seed=0
        )
        self._engine.add_request(
            Request(request_id=request_id, prompt_token_ids=tokens, params=params)
        )

    def _note(self, now: float) -> None:
        found = self.latencies
        for request_id, delta in self._engine.take_outputs().deltas:
            before, due = self._latest.get(request_id), self._due[request_id]
            if before is None:
                found.ttft.append(now - due)
            else:
                found.gaps.append(now - before)
            self._latest[request_id] = now
            if delta.finish_reason is not None:
                found.e2e.append(now - due)
