"""twinflow: a distributed serving runtime for large language models.

Public names are loaded on first use, so that `import twinflow` is fast and imports neither torch
nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinflow.cluster.client import Admin, AsyncClient, Client
    from twinflow.runtime.llm import LLM
    from twinflow.runtime.outputs import CompletionOutput, RequestOutput
    from twinflow.runtime.sampling_params import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Admin",
    "AsyncClient",
    "Client",
    "CompletionOutput",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]

_HOMES = {
    "Admin": "twinflow.cluster.client",
    "AsyncClient": "twinflow.cluster.client",
    "Client": "twinflow.cluster.client",
    "CompletionOutput": "twinflow.runtime.outputs",
    "LLM": "twinflow.runtime.llm",
    "RequestOutput": "twinflow.runtime.outputs",
    "SamplingParams": "twinflow.runtime.sampling_params",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'twinflow' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
