"""Two lanes of a CPU: each on processor cores of its own.

    cores    0 1 2 3 4 5 | 6 7
             prefill     | decode       layout (6, 2)

A lane is one thread, together with the OpenMP team that torch gives every thread that computes. The
mask of a thread that was made earlier does not change with its maker's: the whole team is pinned
whenever the lane moves. Members are found by the thread's name, which threads inherit from their
maker. Whoever joins the team later inherits the mask as well.

All layouts are tried before anything is served, on threads of their own: containers and OpenMP's
own settings (OMP_PROC_BIND, GOMP_CPU_AFFINITY) may stand in the way. Caches and memory are not
divided.
"""

import threading
from collections.abc import Callable, Iterable

from twinflow.parallel.partition.backends.base import Backend, Place
from twinflow.parallel.partition.backends.names import CORES
from twinflow.parallel.partition.backends.thread_team import TeamSystem, ThreadTeam, TorchTeams
from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Grid, Layout
from twinflow.protos.errors import ConfigError

_PROBE_S = 30.0


class CoreSets(Backend):
    """See the module.

    Args:
        place: with at least two cores.
        system: pins threads and sets their number.

    Raises:
        ConfigError: there are too few cores, or threads cannot be kept on some of them.
    """

    name = CORES

    def __init__(self, place: Place, system: TeamSystem | None = None) -> None:
        if place.device != "cpu":
            raise ConfigError(f"core sets divide a CPU, and the worker computes on {place.device}")
        self._cores = place.cores
        self._system = system or TorchTeams()
        count = len(self._cores)
        if count < 2:
            raise ConfigError(f"two lanes need two processor cores, and the worker has {count}")
        self.grid: Grid = Grid.of(count)
        self._teams: dict[Mode, ThreadTeam] = {}
        self._size = self._system.size()
        try:
            for lane in Mode:
                self._probe(lane)
        finally:
            self._system.set_size(self._size)

    def enter(self, lane: Mode, layout: Layout) -> None:
        """See the base class."""
        team = self._teams.get(lane)
        if team is None:
            team = self._teams[lane] = ThreadTeam(self._system)
        team.move(self.cores_of(lane, layout))

    def settle(self, lane: Mode) -> None:
        """See the base class: a thread returns from what it computes."""

    def cores_of(self, lane: Mode, layout: Layout) -> tuple[int, ...]:
        """A lane's cores: the first ones for prompts, the last ones for decoding."""
        if lane is Mode.PREFILL:
            return self._cores[: layout.prefill]
        return self._cores[len(self._cores) - layout.decode :]

    def describe(self) -> str:
        """See the base class."""
        return f"{len(self._cores)} processor cores"

    def close(self) -> None:
        """See the base class: teams end with their threads, and their sizes must not be those of
        threads that come later."""
        self._system.set_size(self._size)

    def _probe(self, lane: Mode) -> None:
        """Try a lane's part of every layout, on a thread that ends afterwards."""
        layouts = [self.grid.layout(index) for index in range(len(self.grid.splits))]
        whole = self.grid.all_prefill if lane is Mode.PREFILL else self.grid.all_decode
        sets = [self.cores_of(lane, layout) for layout in (*layouts, whole)]
        problem = _on_thread(lambda: _try(ThreadTeam(self._system), sets))
        if problem is not None:
            raise ConfigError(f"threads cannot be kept on processor cores: {problem}")


def _try(team: ThreadTeam, sets: Iterable[tuple[int, ...]]) -> None:
    for cores in sets:
        team.move(cores)
        team.verify(cores)


def _on_thread(call: Callable[[], None]) -> BaseException | None:
    """Run something on a thread of its own; returns what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - handed to whoever asked
            raised.append(error)

    thread = threading.Thread(target=run, name="twinflow-lane-probe", daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    if thread.is_alive():
        return TimeoutError(f"moving a thread to other cores took more than {_PROBE_S:g} s")
    return raised[0] if raised else None
