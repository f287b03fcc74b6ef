"""What a node of a Ray cluster is asked before it gets workers: what it has, and which model.

Every worker reads the model from its own node's disk. That it is the same everywhere is checked
here as far as that costs little: names and sizes of all files, contents of all but the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

import twinflow
from twinflow.cluster.launch.machine import Machine, this_machine
from twinflow.protos.errors import CheckpointError, SetupError

_WEIGHTS = ".safetensors"
_SUFFIXES = frozenset({_WEIGHTS, ".json", ".jinja"})


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself.

    Attributes:
        version: of twinflow there.
        machine: what it offers.
        model: a mark of each file of the model, by name; None if the directory is not there.
    """

    version: str
    machine: Machine
    model: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Survey:
    """The questions, and what the answers must be.

    Attributes:
        model: absolute path of the model, here as on every node.
        with_gpus: look for GPUs too.
    """

    model: Path
    with_gpus: bool

    def report(self) -> NodeReport:
        """Answer for the machine that this runs on."""
        machine = this_machine(with_gpus=self.with_gpus)
        return NodeReport(twinflow.__version__, machine, marks_of(self.model))

    def check(self, host: str, report: NodeReport) -> None:
        """Refuse a node that would serve something else.

        Raises:
            SetupError: it has another twinflow.
            CheckpointError: it has not got the model, or another one.
        """
        if report.version != twinflow.__version__:
            raise SetupError(
                f"node {host} has twinflow {report.version}, this machine {twinflow.__version__}: "
                "install the same everywhere"
            )
        where = f"node {host}: {self.model}"
        if report.model is None:
            raise CheckpointError(
                f"{where}: no such directory; the model must lie at the same path on every node"
            )
        mine = marks_of(self.model) or {}
        for name in sorted(mine.keys() | report.model.keys()):
            if mine.get(name) != report.model.get(name):
                raise CheckpointError(
                    f"{where}: {name} is not the same there as on this machine; copy the model anew"
                )


def marks_of(directory: Path) -> dict[str, str] | None:
    """A mark for each file of a model, by name: size of weights, digest of the rest.

    None if there is no such directory.
    """
    if not directory.is_dir():
        return None
    files = [path for path in directory.iterdir() if path.suffix in _SUFFIXES and path.is_file()]
    return {path.name: _mark(path) for path in files}


def _mark(path: Path) -> str:
    if path.suffix == _WEIGHTS:
        return str(path.stat().st_size)
    return xxhash.xxh3_64_hexdigest(path.read_bytes())
