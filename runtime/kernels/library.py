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
    """`LinearLayer` of kernels.h."""

    _fields_ = (
        ("panels", _ADDRESS),
        ("bias", _ADDRESS),
        ("in_features", _SIZE),
        ("out_features", _SIZE),
        ("element_size", _SIZE),
    )


class Heads(ctypes.Structure):
    """`Heads` of kernels.h."""

    _fields_ = (
        ("rows", _ADDRESS),
        ("num_rows", _SIZE),
        ("query_heads", _SIZE),
        ("kv_heads", _SIZE),
        ("head_dim", _SIZE),
        ("table", _ADDRESS),
        ("norm", _ADDRESS),
        ("eps", ctypes.c_float),
        ("query_factor", ctypes.c_float),
    )


class Slots(ctypes.Structure):
    """`Slots` of kernels.h."""

    _fields_ = (
        ("rows", _ADDRESS),
        ("num_rows", _SIZE),
        ("row_stride", _SIZE),
        ("stored_heads", _SIZE),
        ("head_dim", _SIZE),
        ("element_size", _SIZE),
    )


class AttentionStep(ctypes.Structure):
    """`AttentionStep` of kernels.h."""

    _fields_ = (
        ("starts", _ADDRESS),
        ("counts", _ADDRESS),
        ("first_rows", _ADDRESS),
        ("blocks", _ADDRESS),
        ("first_blocks", _ADDRESS),
        ("item_sequences", _ADDRESS),
        ("item_rows", _ADDRESS),
        ("num_items", _SIZE),
        ("rows_per_item", _SIZE),
    )


class AttentionShape(ctypes.Structure):
    """`AttentionShape` of kernels.h."""

    _fields_ = (
        ("head_rows", _ADDRESS),
        ("rows_per_block", _SIZE),
        ("block_size", _SIZE),
        ("head_dim", _SIZE),
        ("query_heads", _SIZE),
        ("kv_heads", _SIZE),
        ("element_size", _SIZE),
    )


class Attended(ctypes.Structure):
    """`Attended` of kernels.h."""

    _fields_ = (
        ("keys", _ADDRESS),
        ("values", _ADDRESS),
        ("queries", _ADDRESS),
        ("query_stride", _SIZE),
        ("out", _ADDRESS),
    )


class NormedRows(ctypes.Structure):
    """`NormedRows` of kernels.h."""

    _fields_ = (
        ("hidden", _ADDRESS),
        ("delta", _ADDRESS),
        ("weight", _ADDRESS),
        ("out", _ADDRESS),
        ("num_rows", _SIZE),
        ("width", _SIZE),
        ("eps", ctypes.c_float),
    )


class DecoderLayer(ctypes.Structure):
    """`DecoderLayer` of layers.cpp."""

    _fields_ = (
        ("attention_norm", _ADDRESS),
        ("query_key_value", ctypes.POINTER(LinearLayer)),
        ("head_norm", _ADDRESS),
        ("output", ctypes.POINTER(LinearLayer)),
        ("mlp_norm", _ADDRESS),
        ("gate_up", ctypes.POINTER(LinearLayer)),
        ("down", ctypes.POINTER(LinearLayer)),
    )


class StackStep(ctypes.Structure):
    """`StackStep` of layers.cpp."""

    _fields_ = (
        ("hidden", _ADDRESS),
        ("num_rows", _SIZE),
        ("width", _SIZE),
        ("inner", _SIZE),
        ("eps", ctypes.c_float),
        ("heads", ctypes.POINTER(Heads)),
        ("slots", ctypes.POINTER(Slots)),
        ("attention", ctypes.POINTER(AttentionStep)),
        ("shape", ctypes.POINTER(AttentionShape)),
        ("key_planes", _ADDRESS),
        ("value_planes", _ADDRESS),
        ("normed", _ADDRESS),
        ("delta", _ADDRESS),
        ("attended", _ADDRESS),
        ("gate_up", _ADDRESS),
        ("gated", _ADDRESS),
    )


class KernelLibrary:
    """The functions, with their types; what they take and do is written beside them in C++.

    Attributes:
        digest: of the sources; where it is the same, the same bits are computed.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.digest = sources_digest()
        layer, heads, slots = map(ctypes.POINTER, (LinearLayer, Heads, Slots))
        self.pack = _function(library, "twinflow_pack", layer, _ADDRESS)
        self.linear = _function(library, "twinflow_linear", layer, _ADDRESS, _SIZE, _ADDRESS)
        self.rotate = _function(library, "twinflow_rotate", heads)
        self.store = _function(library, "twinflow_store", slots, _ADDRESS, _ADDRESS)
        self.gated_silu = _function(
            library, "twinflow_gated_silu", _ADDRESS, _ADDRESS, _SIZE, _SIZE
        )
        self.add_norm = _function(library, "twinflow_add_norm", ctypes.POINTER(NormedRows))
        step, shape = ctypes.POINTER(AttentionStep), ctypes.POINTER(AttentionShape)
        attended = ctypes.POINTER(Attended)
        self.attend = _function(library, "twinflow_attend", step, shape, attended)
        layers, stack = ctypes.POINTER(DecoderLayer), ctypes.POINTER(StackStep)
        self.layers = _function(library, "twinflow_layers", layers, _SIZE, stack)

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
