"""What this machine offers a deployment: cores, memory, GPUs. Measures; decides nothing."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from twinflow.runtime.host_memory import available_memory
from twinflow.workers.role import Role

LOOPBACK = "127.0.0.1"
_ROOT = Path("/")
_DEVICES = Path("/dev")
# Torch alone knows whether it can use a GPU, and it is loaded in a process of its own.
_SURVEY = (sys.executable, "-m", "twinflow.runtime.cuda_devices")
_SURVEY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Gpus:
    """The CUDA devices that torch can use.

    Attributes:
        free_memory: bytes of each device that are free.
        problem: why there is none, if there is none.
    """

    free_memory: tuple[int, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a deployment may use.

    Attributes:
        cores: processor cores.
        free_memory: bytes.
        gpus: CUDA devices.
    """

    cores: int
    free_memory: int
    gpus: Gpus = Gpus(problem="nobody has looked for a GPU")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that workers may run on.

    Attributes:
        machine: what it offers.
        host: address at which the deployment's other nodes reach it.
        room: ranks of each pool that it was declared to take; None if nothing was declared, so
            that it takes whatever comes.
    """

    machine: Machine
    host: str = LOOPBACK
    room: Mapping[Role, int] | None = None


def this_machine(*, with_gpus: bool) -> Machine:
    """Cores that this process may use, and memory that is free.

    Args:
        with_gpus: look for GPUs too, which takes seconds where there are some.
    """
    cores, memory = usable_cores(), available_memory()
    return Machine(cores, memory, find_gpus()) if with_gpus else Machine(cores, memory)


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use, within the limit of the container.

    Args:
        root: where `sys` is mounted.
    """
    # Only Linux tells which cores a process may use.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = root / "sys/fs/cgroup/cpu.max"  # cgroup v2: microseconds, of how many
    text = quota.read_text(encoding="ascii") if quota.is_file() else "max"
    allowed, _, period = text.strip().partition(" ")
    return cores if allowed == "max" else max(1, min(cores, int(allowed) // int(period)))


def find_gpus(devices: Path = _DEVICES, survey: Sequence[str] = _SURVEY) -> Gpus:
    """Ask torch for the CUDA devices; on a machine without a GPU this costs nothing.

    Args:
        devices: where the driver's device files are.
        survey: the command that asks torch.
    """
    if not any(devices.glob("nvidia[0-9]*")) and not (devices / "dxg").exists():
        return Gpus(problem=f"the machine has no NVIDIA GPU (no {devices}/nvidia0)")
    try:
        ran = subprocess.run(
            survey, capture_output=True, text=True, check=True, timeout=_SURVEY_TIMEOUT_S
        )
        return msgspec.json.decode(ran.stdout, type=Gpus)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"status {error.returncode}"]
        return Gpus(problem=f"torch could not be asked for GPUs: {lines[-1]}")
    except subprocess.TimeoutExpired:
        return Gpus(problem=f"torch did not say within {_SURVEY_TIMEOUT_S:g} s what GPUs it sees")
