"""What became of the latest sequences: where each of them was, for how long, and why it left.

For an operator who asks about one request; nothing is decided by it. Bounded, the oldest go first.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from twinflow.cluster.router.snapshot import Route
from twinflow.runtime.outputs import PhaseTime, TokenDelta

StoryState = Literal["running", "finished", "aborted", "failed"]
# How many are kept. A story of one stay is a kilobyte.
CAPACITY = 4096
# What front doors put before a request's id in their answers.
_PREFIXES = ("chatcmpl-", "cmpl-")


@dataclass(slots=True)
class AttemptStory:
    """One stay of a sequence on the workers.

    Attributes:
        decode: worker that it was submitted to.
        decode_epoch: which life of it.
        prefill: worker that computed its prompt for that one; empty if none did.
        began: when, in seconds of the history's clock.
        ended: when; None if it runs.
        tokens: that it brought.
        outcome: why it ended; empty while it runs.
    """

    decode: str
    decode_epoch: int
    prefill: str
    began: float
    ended: float | None = None
    tokens: int = 0
    outcome: str = ""


@dataclass(slots=True)
class Story:
    """One sequence.

    Attributes:
        sequence_id: of the gateway.
        prompt_tokens: of its prompt.
        began: when it was first sent to a worker.
        state: how far it is.
        first_token: when that came.
        attempts: its stays, the latest last.
        phases: where the time of the latest one went on the workers, as last told.
    """

    sequence_id: str
    prompt_tokens: int
    began: float
    state: StoryState = "running"
    first_token: float | None = None
    attempts: list[AttemptStory] = field(default_factory=list)
    phases: tuple[PhaseTime, ...] = ()

    @property
    def output_tokens(self) -> int:
        """Tokens that all its stays have brought."""
        return sum(attempt.tokens for attempt in self.attempts)


class History:
    """The stories of the latest sequences.

    Args:
        clock: seconds, monotonic.
        capacity: stories to keep.
    """

    def __init__(self, clock: Callable[[], float], capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._capacity = capacity
        self._stories: OrderedDict[str, Story] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stories)

    @property
    def now(self) -> float:
        """The clock that stories are told in."""
        return self._clock()

    def begin(self, sequence_id: str, prompt_tokens: int) -> Story:
        """A sequence is about to be sent to a worker."""
        story = Story(sequence_id, prompt_tokens, self._clock())
        self._stories[sequence_id] = story
        while len(self._stories) > self._capacity:
            self._stories.popitem(last=False)
        return story

    def attempt(self, story: Story, route: Route) -> None:
        """It is sent somewhere."""
        # Names, not views of workers: those are large, and this is kept.
        prefill = route.prefill.worker_id if route.prefill else ""
        stay = AttemptStory(
            route.decode.worker_id, route.decode.epoch, prefill, began=self._clock()
        )
        story.attempts.append(stay)

    def deliver(self, story: Story, delta: TokenDelta) -> None:
        """It has brought tokens."""
        if story.first_token is None and delta.token_ids:
            story.first_token = self._clock()
        story.attempts[-1].tokens += len(delta.token_ids)
        story.phases = delta.phases or story.phases
        if delta.finish_reason is not None:
            story.state = "finished"
            self.leave(story, "finished")

    def leave(self, story: Story, outcome: str) -> None:
        """Its stay there is over."""
        latest = story.attempts[-1]
        latest.ended, latest.outcome = self._clock(), outcome

    def close(self, story: Story) -> None:
        """Nothing more happens to it; if it has no end of its own, its client went away."""
        if story.state == "running":
            story.state = "aborted"
        if story.attempts and story.attempts[-1].ended is None:
            self.leave(story, story.state)

    def latest(self, count: int) -> tuple[Story, ...]:
        """The stories that began last, the newest first."""
        return tuple(islice(reversed(self._stories.values()), count))

    def find(self, request_id: str) -> tuple[Story, ...]:
        """The stories of a request's sequences, or of one sequence.

        Args:
            request_id: of the gateway, with or without what answers put before it.
        """
        for prefix in _PREFIXES:
            request_id = request_id.removeprefix(prefix)
        exact = self._stories.get(request_id)
        if exact is not None:
            return (exact,)
        found: list[Story] = []
        while (story := self._stories.get(f"{request_id}-{len(found)}")) is not None:
            found.append(story)
        return tuple(found)
