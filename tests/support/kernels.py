"""Native kernels for tests, where this machine can compile them."""

from functools import cache

import pytest

from twinflow.runtime.kernels.base import Kernels
from twinflow.runtime.kernels.compiler import CompilerError
from twinflow.runtime.kernels.library import KernelLibrary
from twinflow.runtime.kernels.native import NativeKernels
from twinflow.runtime.kernels.plain import TorchKernels


@cache
def native_library() -> KernelLibrary:
    """The compiled kernels; the test is skipped without them."""
    try:
        return KernelLibrary.open()
    except CompilerError as error:
        pytest.skip(f"no native kernels here: {error}")


def kernels_named(name: str) -> Kernels:
    """`torch` or `native` kernels; the test is skipped if there are none here."""
    return TorchKernels() if name == "torch" else NativeKernels(native_library())
