"""Core sets: who is put where, and every way in which that can fail."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from twinflow.parallel.partition.backends.base import Place
from twinflow.parallel.partition.backends.cores import CoreSets
from twinflow.parallel.partition.backends.thread_team import ThreadTeam, TorchTeams
from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Layout
from twinflow.protos.errors import ConfigError


@dataclass
class FakeSystem:
    """Teams that grow when they compute, and whose new members inherit their maker's cores.

    Attributes:
        allowed: cores that threads can be put on.
        most: threads of a team that are ever made.
        forgetful: new members are put anywhere instead.
    """

    allowed: frozenset[int]
    most: int = 1000
    forgetful: bool = False
    masks: dict[str, list[frozenset[int]]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    def name(self) -> str:
        name = str(threading.get_ident()) + "/" + str(len(self.masks))
        self.masks[name] = [self.allowed]
        return name

    def _own(self) -> str:
        return next(n for n in reversed(self.masks) if n.startswith(f"{threading.get_ident()}/"))

    def members(self, name: str) -> Sequence[int]:
        start = 1000 * list(self.masks).index(name)
        return range(start, start + len(self.masks[name]))

    def pin(self, member: int, cores: Sequence[int]) -> None:
        if not set(cores) <= self.allowed:
            raise OSError(22, "Invalid argument")
        self.masks[list(self.masks)[member // 1000]][member % 1000] = frozenset(cores)

    def cores(self, member: int) -> frozenset[int]:
        return self.masks[list(self.masks)[member // 1000]][member % 1000]

    def size(self) -> int:
        return self.sizes.get(threading.get_ident(), 1)

    def set_size(self, threads: int) -> None:
        self.sizes[threading.get_ident()] = threads

    def compute(self, threads: int) -> None:
        team = self.masks[self._own()]
        assert threads == self.size()
        while len(team) < min(threads, self.most):
            team.append(self.allowed if self.forgetful else team[0])


def make(count: int, **changes: object) -> CoreSets:
    cores = tuple(range(10, 10 + count))
    settings = {"allowed": frozenset(range(10 + count))} | changes
    return CoreSets(Place("cpu", cores), FakeSystem(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "splits"), [(2, (1,)), (5, (1, 2, 3, 4)), (64, range(8, 57, 8))])
def test_there_are_a_few_splits(count: int, splits: Sequence[int]) -> None:
    assert make(count).grid.splits == tuple(splits)


@pytest.mark.parametrize("count", [2, 3, 8, 9, 64])
def test_lanes_never_share_a_core_and_leave_none_idle(count: int) -> None:
    backend = make(count)
    for index in range(len(backend.grid.splits)):
        layout = backend.grid.layout(index)
        prefill, decode = (backend.cores_of(lane, layout) for lane in Mode)
        assert (len(prefill), len(decode)) == (layout.prefill, layout.decode)
        assert sorted((*prefill, *decode)) == list(range(10, 10 + count))
    for lane, layout in zip(Mode, (backend.grid.all_prefill, backend.grid.all_decode), strict=True):
        assert len(backend.cores_of(lane, layout)) == count


def test_a_team_moves_as_a_whole() -> None:
    system = FakeSystem(frozenset(range(4)))
    team = ThreadTeam(system)
    for cores in ((0, 1, 2), (3,), (2, 3), (0, 1, 2, 3)):
        team.move(cores)
        team.verify(cores)
        (masks,) = system.masks.values()
        assert set(masks) == {frozenset(cores)}
        assert set(system.sizes.values()) == {len(cores)}


FAILURES: list[tuple[Callable[[], CoreSets], str]] = [
    (lambda: make(1), "two lanes need two processor cores, and the worker has 1"),
    (lambda: make(0), "the worker has 0"),
    (lambda: CoreSets(Place("cuda:0", (0, 1))), "computes on cuda:0"),
    (lambda: make(4, allowed=frozenset({10, 11})), "cores 10,11,12: Invalid argument"),
    (lambda: make(4, most=2), "2 threads computed where 3 were"),
    (lambda: make(4, forgetful=True), "a thread that was put on cores 10,11 runs on 0,1,2"),
]


@pytest.mark.parametrize(("build", "message"), FAILURES, ids=[text[:25] for _, text in FAILURES])
def test_what_stands_in_the_way_is_said(build: Callable[[], CoreSets], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_real_threads_run_where_they_are_put() -> None:
    cores = tuple(sorted(os.sched_getaffinity(0)))[:4]
    if len(cores) < 2:
        pytest.skip("core sets need two processor cores")
    backend = CoreSets(Place("cpu", cores))
    seen: list[tuple[frozenset[int], int]] = []

    def lane() -> None:
        for decode in (len(cores), 1, len(cores), 1):
            backend.enter(Mode.DECODE, Layout(len(cores) - decode, decode))
            torch.empty(1 << 18).fill_(1.0)
            system = TorchTeams()
            name = f"lane-{threading.get_native_id()}"
            masks = {system.cores(member) for member in system.members(name)}
            assert len(masks) == 1
            seen.append((masks.pop(), torch.get_num_threads()))

    thread = threading.Thread(target=lane)
    before = os.sched_getaffinity(0)
    thread.start()
    thread.join()
    whole, last = (frozenset(cores), len(cores)), (frozenset(cores[-1:]), 1)
    assert seen == [whole, last, whole, last]
    assert os.sched_getaffinity(0) == before
