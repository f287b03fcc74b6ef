"""The compiled kernels as functions of Python; see `cpp` for what they compute.

Tensors go in as addresses: callers see to it that they are contiguous, of the right type and alive
during the call. Other Python threads run meanwhile.
"""

import ctypes
from pathlib import Path
from typing import Any

from twinflow.runtime.kernels.compiler import CompilerError, load_compiled, sources_digest

_SIZE = ctypes.c_int64
_ADDRESS = ctypes.c_void_p


class LinearLayer(ctypes.Structure):
    """`LinearLayer` of linear.cpp."""

    _fields_ = (
        ("panels", _ADDRESS),
        ("bias", _ADDRESS),
        ("in_features", _SIZE),
        ("out_features", _SIZE),
        ("element_size", _SIZE),
    )


class KernelLibrary:
    """The functions, with their types.

    Attributes:
        digest: of the sources; where it is the same, the same bits are computed.
        pack: fills the panels of a layer: layer, weight.
        linear: applies a layer: layer, rows, number of rows, out.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.digest = sources_digest()
        layer = ctypes.POINTER(LinearLayer)
        self.pack = _function(library, "twinflow_pack", layer, _ADDRESS)
        self.linear = _function(library, "twinflow_linear", layer, _ADDRESS, _SIZE, _ADDRESS)

    @classmethod
    def open(cls) -> "KernelLibrary":
        """Load the library, which is compiled if this machine has not done so before.

        Raises:
            CompilerError: the machine cannot compile or run it.
        """
        return cls(load_compiled(Path.home() / ".cache" / "twinflow"))


def _function(library: ctypes.CDLL, name: str, *types: type[Any]) -> "ctypes._NamedFuncPointer":
    try:
        function = library[name]
    except AttributeError as error:
        raise CompilerError(f"the compiled kernels have no {name}") from error
    function.argtypes = types
    function.restype = None
    return function
