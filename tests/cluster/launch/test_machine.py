"""What is measured of this machine, and how torch is asked for GPUs."""

import sys
from pathlib import Path

import pytest

from twinflow.cluster.launch.machine import Gpus, find_gpus, this_machine, usable_cores


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """A `/dev` with a GPU."""
    (tmp_path / "nvidia0").touch()
    return tmp_path


def says(code: str) -> tuple[str, ...]:
    """A survey that runs some Python."""
    return (sys.executable, "-c", code)


def test_without_a_driver_nobody_is_asked(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    gpus = find_gpus(tmp_path, survey=("/no/such/program",))
    assert gpus == Gpus(problem=f"the machine has no NVIDIA GPU (no {tmp_path}/nvidia0)")


@pytest.mark.parametrize("name", ["nvidia0", "nvidia7", "dxg"])
def test_with_a_driver_torch_is_asked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    gpus = find_gpus(tmp_path, says('print(\'{"free_memory": [5, 6], "problem": ""}\')'))
    assert gpus == Gpus(free_memory=(5, 6))


def test_a_torch_that_cannot_be_asked(devices: Path) -> None:
    gpus = find_gpus(devices, says("raise ImportError('libcudart.so.13: cannot open')"))
    assert gpus.problem.endswith("for GPUs: ImportError: libcudart.so.13: cannot open")
    assert gpus.free_memory == ()


def test_this_torch(devices: Path) -> None:
    """Either it sees GPUs or it says why not."""
    gpus = find_gpus(devices)
    assert bool(gpus.free_memory) != gpus.problem.startswith("torch ")


def test_this_machine() -> None:
    machine = this_machine(with_gpus=False)
    assert machine.cores >= 1
    assert machine.free_memory > 1 << 20
    assert machine.gpus.free_memory == ()


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 64), ("800000 100000", 8), ("50000 100000", 1)]
)
def test_a_container_may_use_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert usable_cores(tmp_path) == 64
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(f"{quota}\n")
    assert usable_cores(tmp_path) == cores
