"""Green contexts: which stream a lane has in which layout, what the driver is asked for, and every
way in which it can refuse."""

import builtins
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.green_devices import FakeCudaDriver, FakeGreenDevice

from twinflow.parallel.partition.backends.base import Place
from twinflow.parallel.partition.backends.green_device import CudaDriver, Multiprocessors
from twinflow.parallel.partition.backends.greenctx import GreenContexts
from twinflow.parallel.partition.backends.registry import choose_backend
from twinflow.parallel.partition.control import Mode
from twinflow.protos.errors import ConfigError

CUDA = Place("cuda:0")


@pytest.mark.parametrize(
    ("found", "splits"),
    [
        (Multiprocessors(132, 8, 8), (16, 32, 48, 64, 80, 96, 112)),
        (Multiprocessors(108, 4, 2), (12, 24, 36, 48, 60, 72, 84, 96)),
        (Multiprocessors(58, 16, 2), (16, 20, 24, 28, 32, 36, 40)),
        (Multiprocessors(16, 8, 8), (8,)),
    ],
)
def test_splits_are_what_the_driver_can_cut(found: Multiprocessors, splits: tuple[int]) -> None:
    grid = GreenContexts(CUDA, FakeGreenDevice(found)).grid
    assert (grid.processors, grid.splits) == (found.count, splits)
    assert all(found.count - split >= found.smallest for split in splits)


def test_a_device_that_is_too_small_is_refused_and_closed() -> None:
    device = FakeGreenDevice(Multiprocessors(14, 8, 8))
    with pytest.raises(ConfigError, match="14 multiprocessors are too few for two lanes"):
        GreenContexts(CUDA, device)
    assert device.closed == 1


def test_lanes_have_disjoint_parts_of_every_layout() -> None:
    device = FakeGreenDevice()
    backend = GreenContexts(CUDA, device)
    for index, prefill in enumerate(backend.grid.splits):
        device.used.clear()
        for lane in Mode:
            backend.enter(lane, backend.grid.layout(index))
            backend.settle(lane)
        first, second = device.used
        assert (device.sizes[first], device.sizes[second]) == (prefill, 132 - prefill)
        assert second == first + 1, "two parts of one split"
        assert device.waited[-2:] == device.used


def test_a_lane_alone_has_the_whole_device_and_a_stream_of_its_own() -> None:
    device = FakeGreenDevice()
    backend = GreenContexts(CUDA, device)
    backend.enter(Mode.PREFILL, backend.grid.all_prefill)
    backend.enter(Mode.DECODE, backend.grid.all_decode)
    first, second = device.used
    assert first != second
    assert (device.sizes[first], device.sizes[second]) == (132, 132)


def test_a_stream_is_chosen_only_when_the_layout_changes() -> None:
    device = FakeGreenDevice()
    backend = GreenContexts(CUDA, device)
    for index in (0, 0, 1, 1, 0):
        backend.enter(Mode.DECODE, backend.grid.layout(index))
    assert len(device.used) == 3


def test_a_split_of_another_size_is_refused() -> None:
    device = FakeGreenDevice(short=8)
    with pytest.raises(ConfigError, match=r"16 were asked for, .* made parts of 8 and 124"):
        GreenContexts(CUDA, device)
    assert device.closed == 1


def test_only_gpus_have_green_contexts() -> None:
    assert "computes on cpu" in choose_backend("greenctx", Place("cpu", (0, 1))).reason


def test_missing_bindings_are_a_reason_for_one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "cuda":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", without)
    choice = choose_backend("auto", CUDA)
    assert choice.backend.name == "none"
    assert "install the version of the driver's CUDA" in choice.reason


class FakeStream:
    """Of torch, on a machine without a GPU."""

    def __init__(self, handle: object, device: object = None) -> None:
        self.handle = handle
        self.waited_for: list[object] = []
        self.synchronized = 0

    def wait_stream(self, other: object) -> None:
        self.waited_for.append(other)

    def synchronize(self) -> None:
        self.synchronized += 1


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeStream]]:
    """Streams that were chosen, with torch's CUDA calls replaced."""
    found: list[FakeStream] = []
    default = FakeStream("default")
    fakes = SimpleNamespace(
        init=lambda: None,
        Stream=FakeStream,
        ExternalStream=FakeStream,
        default_stream=lambda _: default,
        set_stream=found.append,
    )
    monkeypatch.setattr(torch, "cuda", fakes)
    yield found


def test_the_driver_is_asked_in_its_order_and_everything_is_given_back(
    chosen: list[FakeStream],
) -> None:
    driver = FakeCudaDriver()
    backend = GreenContexts(CUDA, CudaDriver("cuda:0", driver))
    assert sorted(driver.contexts.values()) == sorted([*range(16, 113, 16), *range(20, 117, 16)])
    backend.enter(Mode.PREFILL, backend.grid.layout(3))
    backend.settle(Mode.PREFILL)
    (stream,) = chosen
    context = driver.streams[stream.handle]  # type: ignore[index]
    assert driver.contexts[context] == 64
    assert stream.synchronized == 1
    assert len(stream.waited_for) == 1, "what ran before there were lanes comes first"
    backend.close()
    backend.close()
    assert (driver.contexts, driver.streams) == ({}, {})


@pytest.mark.parametrize(
    "refused",
    [
        "cuDeviceGetDevResource",
        "cuDevSmResourceSplitByCount",
        "cuDevResourceGenerateDesc",
        "cuGreenCtxCreate",
        "cuGreenCtxGetDevResource",
        "cuGreenCtxStreamCreate",
    ],
)
def test_whatever_the_driver_refuses_is_named_and_leaves_nothing(
    refused: str, chosen: list[FakeStream]
) -> None:
    driver = FakeCudaDriver(refused=refused)
    with pytest.raises(ConfigError, match=f"{refused}: CUDA_ERROR_NOT_SUPPORTED"):
        GreenContexts(CUDA, CudaDriver("cuda:0", driver))
    assert (driver.contexts, driver.streams, chosen) == ({}, {}, [])


def test_an_old_driver_is_named(chosen: list[FakeStream]) -> None:
    driver = SimpleNamespace(
        CUresult=FakeCudaDriver.CUresult,
        CUdevResourceType=FakeCudaDriver.CUdevResourceType,
        cuDeviceGet=FakeCudaDriver().cuDeviceGet,
    )
    with pytest.raises(ConfigError, match=r"no cuDeviceGetDevResource; .* need CUDA 12\.4"):
        GreenContexts(CUDA, CudaDriver("cuda:0", driver))
    assert chosen == []
