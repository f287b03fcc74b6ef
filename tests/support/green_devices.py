"""A GPU that can be divided, without one: at the level of backends, and of the driver's calls."""

from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

from twinflow.parallel.partition.backends.green_device import Multiprocessors, SplitStreams


@dataclass
class FakeGreenDevice:
    """Remembers streams by number.

    Attributes:
        found: what there is to divide.
        short: multiprocessors that every group has less than was asked for.
        sizes: of what each stream has.
        used: streams in the order in which they were chosen.
        waited: streams that were waited for.
        closed: how often it was closed.
    """

    found: Multiprocessors = field(default_factory=lambda: Multiprocessors(132, 8, 8))
    short: int = 0
    sizes: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)
    closed: int = 0

    def multiprocessors(self) -> Multiprocessors:
        return self.found

    def split(self, count: int) -> SplitStreams:
        group = count - self.short
        rest = self.found.count - group
        self.sizes += [group, rest]
        return SplitStreams(len(self.sizes) - 2, group, len(self.sizes) - 1, rest)

    def whole(self) -> int:
        self.sizes.append(self.found.count)
        return len(self.sizes) - 1

    def use(self, stream: int) -> None:
        self.used.append(stream)

    def wait(self, stream: int) -> None:
        self.waited.append(stream)

    def close(self) -> None:
        self.closed += 1


class FakeStatus(Enum):
    """Of a call of the driver."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_NOT_SUPPORTED = 801


class FakeCudaDriver:
    """The calls of the driver that green contexts need, with its rules.

    A group is rounded up to the alignment; a part becomes a context only through a description; a
    context is destroyed once, after its streams, which have been waited for.

    Args:
        count: multiprocessors.
        refused: a call that fails with `CUDA_ERROR_NOT_SUPPORTED`.
    """

    CUresult = FakeStatus
    CUdevResourceType = SimpleNamespace(CU_DEV_RESOURCE_TYPE_SM="sm")
    CUgreenCtxCreate_flags = SimpleNamespace(CU_GREEN_CTX_DEFAULT_STREAM=SimpleNamespace(value=1))
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=SimpleNamespace(value=1))

    def __init__(self, count: int = 132, refused: str = "") -> None:
        self._count = count
        self._refused = refused
        self.contexts: dict[int, int] = {}
        self.streams: dict[int, int] = {}
        self.waited: set[int] = set()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and name == self._refused:
            return lambda *_: (FakeStatus.CUDA_ERROR_NOT_SUPPORTED,)
        return super().__getattribute__(name)

    def cuDeviceGet(self, index: int) -> tuple[FakeStatus, int]:
        return FakeStatus.CUDA_SUCCESS, index

    def cuDeviceGetDevResource(self, _device: int, kind: str) -> tuple[FakeStatus, Any]:
        assert kind == "sm"
        return FakeStatus.CUDA_SUCCESS, _part(self._count)

    def cuDevSmResourceSplitByCount(
        self, groups: int, whole: Any, flags: int, count: int
    ) -> tuple[FakeStatus, list[Any], int, Any]:
        assert (groups, flags) == (1, 0)
        got = -(-count // 8) * 8
        return FakeStatus.CUDA_SUCCESS, [_part(got)], 1, _part(whole.sm.smCount - got)

    def cuDevResourceGenerateDesc(
        self, parts: list[Any], count: int
    ) -> tuple[FakeStatus, tuple[str, int]]:
        assert len(parts) == count == 1
        return FakeStatus.CUDA_SUCCESS, ("description", parts[0].sm.smCount)

    def cuGreenCtxCreate(
        self, description: tuple[str, int], _device: int, flags: int
    ) -> tuple[FakeStatus, int]:
        assert description[0] == "description" and flags == 1
        number = 100 + len(self.contexts)
        self.contexts[number] = description[1]
        return FakeStatus.CUDA_SUCCESS, number

    def cuGreenCtxGetDevResource(self, context: int, _kind: str) -> tuple[FakeStatus, Any]:
        return FakeStatus.CUDA_SUCCESS, _part(self.contexts[context])

    def cuGreenCtxStreamCreate(
        self, context: int, flags: int, _priority: int
    ) -> tuple[FakeStatus, int]:
        assert flags == 1
        self.streams[1000 + context] = context
        return FakeStatus.CUDA_SUCCESS, 1000 + context

    def cuStreamSynchronize(self, stream: int) -> tuple[FakeStatus]:
        self.waited.add(stream)
        return (FakeStatus.CUDA_SUCCESS,)

    def cuStreamDestroy(self, stream: int) -> tuple[FakeStatus]:
        assert stream in self.waited, "a stream is destroyed while something may run in it"
        del self.streams[stream]
        return (FakeStatus.CUDA_SUCCESS,)

    def cuGreenCtxDestroy(self, context: int) -> tuple[FakeStatus]:
        assert context not in self.streams.values(), "a context is destroyed before its streams"
        del self.contexts[context]
        return (FakeStatus.CUDA_SUCCESS,)


def _part(count: int) -> SimpleNamespace:
    return SimpleNamespace(
        sm=SimpleNamespace(smCount=count, minSmPartitionSize=8, smCoscheduledAlignment=8)
    )
