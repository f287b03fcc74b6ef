"""Steps that all ranks of a worker take together, as rank 0 orders them.

The model that is served and the one that drafts for it take turns: their steps are numbered in one
row, so that a rank that misses one is found out. A step that fails on rank 0 after others were told
of it ends the worker: they went on, and nothing they have computed goes together any more.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog
from torch import Tensor

from twinflow.parallel.ranks.base import RankGroup
from twinflow.protos.errors import RankLost
from twinflow.runtime.executor import LayersDone
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.runner import DraftRunner, Runner
from twinflow.runtime.speculative.layer_parallel.share import DraftShare
from twinflow.workers.ranks.frames import Draft, Step, draft_frame, step_frame
from twinflow.workers.ranks.leader import Leader


class Together:
    """Has all ranks take steps.

    Args:
        leader: the other ranks.
    """

    def __init__(self, leader: Leader) -> None:
        self.leader = leader
        self._steps = 0

    def take(self, order: Callable[[int], Step], compute: Callable[[], Tensor]) -> Tensor:
        """Take a step.

        Args:
            order: the frame for it, from its number.
            compute: the share of rank 0.

        Returns:
            What `compute` returns, once all collectives are done.

        Raises:
            RankLost: a rank is gone, or the step failed on one, this one included.
        """
        self.leader.check()
        self._steps += 1
        self.leader.tell(order(self._steps))
        try:
            found = compute()
            self.leader.ranks.settle()
        except RankLost as error:
            failure = self.leader.fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks went on
            reason = f"rank 0 failed in step {self._steps}: {type(error).__name__}: {error}"
            structlog.get_logger().exception("a step failed on rank 0")
            failure = self.leader.fail(RankLost(reason))
        else:
            return found
        raise failure


class LeaderRunner:
    """A runner for the engine of rank 0: every step is computed by all ranks together.

    Args:
        runner: of rank 0's share.
        together: the other ranks.
    """

    def __init__(self, runner: Runner, together: Together) -> None:
        self._runner = runner
        self._together = together
        self._forgotten: list[str] = []

    @property
    def kv_cache(self) -> KVCache:
        """Rank 0's share of the KV."""
        return self._runner.kv_cache

    def forward(
        self,
        rows: Sequence[SequenceRows],
        on_layers: LayersDone | None = None,
        layers_per_unit: int = 0,
    ) -> Tensor:
        """See `Runner.forward`, and `Together.take` for errors."""
        forgotten, self._forgotten = self._forgotten, []
        return self._together.take(
            lambda number: step_frame(number, rows, layers_per_unit, forgotten),
            lambda: self._runner.forward(rows, on_layers, layers_per_unit),
        )

    def take_traffic(self) -> Sequence[LayerTraffic]:
        """Of rank 0's experts, or its part of all experts; see `Runner.take_traffic`."""
        return self._runner.take_traffic()

    def forget(self, sequence: str) -> bool:
        """See `Runner.forget`; the other ranks hear of it with the next step."""
        known = self._runner.forget(sequence)
        if known:
            self._forgotten.append(sequence)
        return known


class LeaderDraftRunner:
    """A runner for the drafter of rank 0, whose steps all ranks compute together.

    Args:
        runner: of rank 0's share.
        together: the other ranks.
    """

    def __init__(self, runner: DraftRunner, together: Together) -> None:
        self._runner = runner
        self._together = together

    @property
    def kv_cache(self) -> KVCache:
        """Rank 0's share of the KV."""
        return self._runner.kv_cache

    def forward(
        self, rows: Sequence[SequenceRows], *, groups: Sequence[range] | None = None
    ) -> Tensor:
        """See `DraftRunner.forward`, and `Together.take` for errors."""
        return self._together.take(
            lambda number: draft_frame(number, rows, groups),
            lambda: self._runner.forward(rows, groups=groups),
        )


class LeaderDraftTeam:
    """The ranks of a worker as a `DraftTeam`.

    Args:
        together: the other ranks.
        load_s: seconds that ranks may differ in loading.
        served: see `DraftTeam.served`.
    """

    def __init__(self, together: Together, load_s: float, served: ModelRunner) -> None:
        self._together = together
        self._load_s = load_s
        self.served = served

    @property
    def size(self) -> int:
        """See `DraftTeam.size`."""
        return self._together.leader.size

    @contextmanager
    def loading(self, share: DraftShare) -> Iterator[RankGroup]:
        """See `DraftTeam.loading`."""
        leader = self._together.leader
        leader.tell(Draft(share.layout, share.mlp, share.ranks))
        with leader.ranks.patience(self._load_s):
            yield leader.ranks

    def runner(self, own: ModelRunner, share: DraftShare) -> DraftRunner:
        """See `DraftTeam.runner`."""
        return own if share.ranks == 1 else LeaderDraftRunner(own, self._together)
