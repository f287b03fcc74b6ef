"""Who takes part in the race, and how each is started."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from twinflow.protos.errors import ConfigError

CHECKOUT = Path(__file__).resolve().parents[2]
HOME = CHECKOUT / ".peers"
"""Where the environments of the others are made unless it is said otherwise."""
GGUF = "smollm2-135m.Q4_1.gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One engine in one form.

    Attributes:
        name: in the table.
        module: of `engines`, which runs it.
        variant: for the module.
        environment: folder of its Python under the home of peers; none for the Python that runs
            here.
        gguf: it reads a GGUF file instead of the model's directory.
        weight_bits: of one weight of a matrix as it lies in memory; the average for blocks with
            scales.
        variables: of its process.
    """

    name: str
    module: str
    variant: str
    environment: str | None = None
    gguf: bool = False
    weight_bits: float = 16
    variables: Mapping[str, str] = field(default_factory=dict)

    def python(self, home: Path) -> Path:
        """The Python that has the engine.

        Raises:
            ConfigError: it is not installed.
        """
        if self.environment is None:
            return Path(sys.executable)
        found = home / self.environment / "bin" / "python"
        if not found.exists():
            raise ConfigError(
                f"not installed: no {found}; `python -m benchmarks.peers setup {self.environment}`"
            )
        return found

    def model(self, model: Path, home: Path) -> Path:
        """What it loads.

        Raises:
            ConfigError: it wants a GGUF file, and there is none.
        """
        if not self.gguf:
            return model
        if not (home / GGUF).exists():
            raise ConfigError(f"no {home / GGUF}; `python -m benchmarks.peers setup llama`")
        return home / GGUF


_ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
CONTESTANTS = {
    each.name: each
    for each in (
        Contestant(name="twinflow", module="twinflow", variant="auto"),
        Contestant(name="twinflow-torch", module="twinflow", variant="torch", weight_bits=32),
        Contestant(
            name="vllm", module="vllm", variant="bfloat16", environment="vllm",
            variables=_ONE_PROCESS,
        ),
        Contestant(
            name="vllm-eager", module="vllm", variant="bfloat16-eager", environment="vllm",
            variables=_ONE_PROCESS,
        ),
        Contestant(
            name="vllm-float32", module="vllm", variant="float32-eager", environment="vllm",
            weight_bits=32, variables=_ONE_PROCESS,
        ),
        Contestant(
            name="llama-q4_1", module="llama", variant="Q4_1", environment="llama", gguf=True,
            weight_bits=5,
        ),
        Contestant(
            name="llama-bf16", module="llama", variant="BF16", environment="llama", gguf=True
        ),
        Contestant(
            name="llama-f16", module="llama", variant="F16", environment="llama", gguf=True
        ),
        Contestant(
            name="transformers", module="transformers", variant="float32", weight_bits=32
        ),
        Contestant(name="transformers-bf16", module="transformers", variant="bfloat16"),
    )
}  # fmt: skip


def choose(names: list[str]) -> list[Contestant]:
    """Contestants by name, in order.

    Raises:
        ConfigError: a name is unknown.
    """
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown:
        raise ConfigError(f"--arms {unknown[0]}: unknown; there are {', '.join(CONTESTANTS)}")
    return [CONTESTANTS[name] for name in names]


def surroundings(variables: Mapping[str, str], threads: int) -> dict[str, str]:
    """Environment variables of a contestant's process: as many threads as it may have, which
    sleep where they wait."""
    own = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    return {**os.environ, **own, **variables}
