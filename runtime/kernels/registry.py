"""Kernels by name, and the choice among them."""

from collections.abc import Callable

import structlog
import torch

from twinflow.protos.errors import ConfigError
from twinflow.runtime.kernels.base import Kernels
from twinflow.runtime.kernels.compiler import CompilerError
from twinflow.runtime.kernels.library import KernelLibrary
from twinflow.runtime.kernels.native import NativeKernels
from twinflow.runtime.kernels.plain import TorchKernels
from twinflow.runtime.models.linear import has_bfloat16_arithmetic

AUTO = "auto"

_KERNELS: dict[str, Callable[[], Kernels]] = {}


def register_kernels(name: str, build: Callable[[], Kernels]) -> None:
    """Make kernels available under a name; a name can be taken only once."""
    if name in _KERNELS:
        raise ValueError(f"kernels named {name!r} are already registered")
    _KERNELS[name] = build


def create_kernels(name: str) -> Kernels:
    """The kernels with a name.

    Raises:
        ConfigError: there are none.
        CompilerError: this machine cannot compile or run them.
    """
    build = _KERNELS.get(name)
    if build is None:
        raise ConfigError(f"CPU kernels {name!r}: unknown; use {AUTO} or one of {sorted(_KERNELS)}")
    return build()


def choose_kernels(name: str, device: str, dtype: torch.dtype) -> Kernels:
    """The kernels that a model is computed with.

    `auto` takes the native ones on a CPU, unless the model is computed in bfloat16 and the CPU can
    multiply bfloat16, which torch does and the native kernels do not; or unless they cannot be
    compiled, which is logged. Other devices are torch's.

    Args:
        name: `auto` or the name of kernels for CPUs.
        device: where the model is computed.
        dtype: of its hidden states.

    Raises:
        ConfigError: the name is unknown, or these kernels do not work here.
    """
    if device != "cpu":
        return TorchKernels()
    if name != AUTO:
        try:
            return create_kernels(name)
        except CompilerError as error:
            raise ConfigError(f"CPU kernels {name!r} do not work here: {error}") from error
    if dtype is torch.bfloat16 and has_bfloat16_arithmetic():
        return TorchKernels()
    try:
        return create_kernels("native")
    except CompilerError as error:
        structlog.get_logger().warning(
            "native CPU kernels do not work here: torch computes instead, which is slower",
            reason=str(error),
        )
        return TorchKernels()


register_kernels("torch", TorchKernels)
register_kernels("native", lambda: NativeKernels(KernelLibrary.open()))
