"""The executor of a simulated engine: tokens at once, and the time they would have taken."""

from collections.abc import Callable, Sequence

from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.outputs import SampledRun, SampledToken
from twinflow.runtime.request import Request
from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import Outlook

# The only token that is ever sampled.
TOKEN_ID = 0
_TOKEN = SampledToken(TOKEN_ID)


class VirtualClock:
    """A clock that is set.

    Attributes:
        now: seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class VirtualExecutor:
    """Carries steps out in no time and moves a clock to when they are over.

    Args:
        clock: of the engine.
        seconds: how long a step takes that begins now, by its load and its rows.
    """

    def __init__(
        self, clock: VirtualClock, seconds: Callable[[StepLoad, Sequence[Work]], float]
    ) -> None:
        self._clock = clock
        self._seconds = seconds

    def admit(self, request: Request) -> None:
        """See `Executor.admit`."""

    def accept(self, request_id: str, token_id: int) -> None:
        """See `Executor.accept`."""

    def restart(self, request_id: str) -> None:
        """See `Executor.restart`."""

    def forget(self, request_id: str) -> None:
        """See `Executor.forget`."""

    def take_traffic(self) -> Sequence[LayerTraffic]:
        """See `Executor.take_traffic`: nothing is loaded."""
        return ()

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """See `Executor.propose`: speculation is not simulated."""
        return [NOTHING] * len(requests)

    def outlook(self, requests: Sequence[Request], nodes: int) -> Outlook:
        """See `Executor.outlook`: likewise."""
        return Outlook()

    def execute(self, work: Sequence[Work], on_layers: LayersDone | None) -> list[SampledRun]:
        """See `Executor.execute`."""
        load = StepLoad.of([item.group for item in work])
        self._clock.now += self._seconds(load, work)
        return [(_TOKEN,)] * load.sampled
