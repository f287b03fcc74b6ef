"""What the CUDA driver does for green contexts, and the streams that torch sees of it.

Calls follow the driver's own documentation (green contexts, CUDA 12.4 and later); they are made
with NVIDIA's bindings, which come with torch's builds for CUDA 13 and can be installed elsewhere.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from twinflow.protos.errors import ConfigError

_BINDINGS = "cuda.bindings.driver"


@dataclass(frozen=True, slots=True)
class Multiprocessors:
    """What there is to divide.

    Attributes:
        count: multiprocessors of the device.
        smallest: part that can be cut off.
        alignment: parts are multiples of it.
    """

    count: int
    smallest: int
    alignment: int


@dataclass(frozen=True, slots=True)
class SplitStreams:
    """Two disjoint parts of a device; streams are numbers, which only their device understands.

    Attributes:
        group: of the part that was asked for.
        group_size: multiprocessors that it really has.
        rest: of the remainder.
        rest_size: multiprocessors that it has.
    """

    group: int
    group_size: int
    rest: int
    rest_size: int


class GreenDevice(Protocol):
    """A device that can be divided; all of it raises ConfigError where the driver refuses."""

    def multiprocessors(self) -> Multiprocessors:
        """What there is to divide."""
        ...

    def split(self, count: int) -> SplitStreams:
        """Streams of `count` multiprocessors, and of all the others."""
        ...

    def whole(self) -> int:
        """A stream of the whole device."""
        ...

    def use(self, stream: int) -> None:
        """Let the calling thread launch into a stream from now on."""
        ...

    def wait(self, stream: int) -> None:
        """Until everything launched into a stream has run."""
        ...

    def close(self) -> None:
        """Wait for all streams and give back what `split` has made."""
        ...


class CudaDriver:
    """A real device; a `GreenDevice`.

    Args:
        device: such as `cuda:0`; torch has computed on it, or will now.
        driver: NVIDIA's bindings of the driver.

    Raises:
        ConfigError: there are no bindings.
    """

    def __init__(self, device: str, driver: Any = None) -> None:
        self._driver = driver or _bindings()
        self._torch_device = torch.device(device)
        # Its primary context is what green contexts are made of.
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = self._torch_device.index or 0
        self._device = self._call("cuDeviceGet", index)
        self._streams: list[torch.cuda.Stream] = []
        self._undo: list[Callable[[], object]] = []

    def multiprocessors(self) -> Multiprocessors:
        """See `GreenDevice.multiprocessors`."""
        sm = self._all().sm
        return Multiprocessors(sm.smCount, sm.minSmPartitionSize, sm.smCoscheduledAlignment)

    def split(self, count: int) -> SplitStreams:
        """See `GreenDevice.split`."""
        groups, _, rest = self._call("cuDevSmResourceSplitByCount", 1, self._all(), 0, count)
        first, first_size = self._stream_of(groups[0])
        second, second_size = self._stream_of(rest)
        return SplitStreams(first, first_size, second, second_size)

    def whole(self) -> int:
        """See `GreenDevice.whole`."""
        stream = torch.cuda.Stream(self._torch_device)  # type: ignore[no-untyped-call]
        return self._keep(stream)

    def use(self, stream: int) -> None:
        """See `GreenDevice.use`; what was launched before there were lanes runs first."""
        chosen = self._streams[stream]
        chosen.wait_stream(torch.cuda.default_stream(self._torch_device))
        torch.cuda.set_stream(chosen)

    def wait(self, stream: int) -> None:
        """See `GreenDevice.wait`."""
        self._streams[stream].synchronize()

    def close(self) -> None:
        """See `GreenDevice.close`; can be called again."""
        while self._undo:
            self._undo.pop()()

    def _all(self) -> Any:
        kind = self._driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
        return self._call("cuDeviceGetDevResource", self._device, kind)

    def _keep(self, stream: torch.cuda.Stream) -> int:
        self._streams.append(stream)
        return len(self._streams) - 1

    def _stream_of(self, part: Any) -> tuple[int, int]:
        """A stream of a part, and the size that the driver says its context has."""
        driver = self._driver
        description = self._call("cuDevResourceGenerateDesc", [part], 1)
        flag = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM.value
        context = self._call("cuGreenCtxCreate", description, self._device, flag)
        self._undo.append(lambda: self._call("cuGreenCtxDestroy", context))
        kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
        size = self._call("cuGreenCtxGetDevResource", context, kind).sm.smCount
        flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        handle = self._call("cuGreenCtxStreamCreate", context, flag, 0)
        self._undo.append(lambda: self._call("cuStreamDestroy", handle))
        self._undo.append(lambda: self._call("cuStreamSynchronize", handle))
        stream = torch.cuda.ExternalStream(  # type: ignore[no-untyped-call]
            int(handle), self._torch_device
        )
        return self._keep(stream), size

    def _call(self, name: str, *args: object) -> Any:
        """What a call of the driver returns besides its status.

        Raises:
            ConfigError: the driver refuses, or has no such call.
        """
        function = getattr(self._driver, name, None)
        if function is None:
            raise ConfigError(f"the CUDA bindings have no {name}; green contexts need CUDA 12.4")
        try:
            status, *results = function(*args)
        except RuntimeError as error:  # the driver's library is absent, or lacks the symbol
            raise ConfigError(f"{name}: {error}") from error
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise ConfigError(f"{name}: {status.name}")
        return results[0] if len(results) == 1 else tuple(results)


def _bindings() -> Any:
    try:
        return importlib.import_module(_BINDINGS)
    except ImportError as error:
        raise ConfigError(
            "green contexts need the Python package cuda-bindings; install the version of the "
            "driver's CUDA"
        ) from error
