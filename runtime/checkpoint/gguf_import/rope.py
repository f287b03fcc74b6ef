"""`rope_scaling` of a GGUF file.

llama.cpp states linear and YaRN scaling as metadata. Llama 3's scaling is a tensor instead,
`rope_freqs.weight`: by how much each frequency is divided. From the tensor its parameters are
recovered and proven by computing the tensor again.
"""

import math

import numpy as np
from numpy.typing import NDArray

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.gguf_import.reader import GgufFile

ROPE_FACTORS = "rope_freqs.weight"

# Published with Llama 3.1 and used by every Llama 3 since; only the factor differs (8 or 32).
_LOW_FREQUENCY = 1.0
_HIGH_FREQUENCY = 4.0
_ORIGINAL_CONTEXT = 8192

# Keys that change the frequencies in ways config.json cannot say.
_REFUSED = ("rope.scale_linear", "rope.scaling.attn_factor", "rope.scaling.yarn_ext_factor")


def rope_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, object] | None:
    """The value of `rope_scaling` in config.json; None for the plain embedding.

    Args:
        file: the GGUF file.
        theta: base of the frequencies.
        head_dim: elements of one head.

    Raises:
        CheckpointError: a scaling that config.json cannot express.
    """
    metadata, prefix = file.metadata, f"{file.architecture}.rope.scaling."
    for key in _REFUSED:
        full = f"{file.architecture}.{key}"
        if metadata.number(full, -1e9, 1e9) not in (None, 1.0):
            raise metadata.error(full, "1 or nothing")
    kind = metadata.text(prefix + "type")
    if kind not in (None, "none", "linear", "yarn"):
        raise metadata.error(prefix + "type", "none, linear or yarn")
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is not None:
        return _llama3(file, factors.dequantize(), theta, head_dim)
    if kind in (None, "none"):
        return None
    scaling: dict[str, object] = {"rope_type": kind}
    for key, source in (
        ("factor", "factor"),
        ("original_max_position_embeddings", "original_context_length"),
        ("beta_fast", "yarn_beta_fast"),
        ("beta_slow", "yarn_beta_slow"),
    ):
        if prefix + source in metadata:
            scaling[key] = metadata.get(prefix + source)
    return scaling


def llama3_factors(theta: float, head_dim: int, factor: float) -> NDArray[np.float64]:
    """By how much Llama 3 divides each frequency, [head_dim / 2].

    Source: the reference code that Meta published with Llama 3.1 (`apply_scaling`). Waves longer
    than the original context are stretched by `factor`, waves shorter than a quarter of it are
    left alone, and the rest goes smoothly from one to the other.
    """
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    ratio = _ORIGINAL_CONTEXT / wavelengths
    kept = np.clip((ratio - _LOW_FREQUENCY) / (_HIGH_FREQUENCY - _LOW_FREQUENCY), 0.0, 1.0)
    return 1.0 / ((1.0 - kept) / factor + kept)


def _llama3(
    file: GgufFile, factors: NDArray[np.float32], theta: float, head_dim: int
) -> dict[str, object] | None:
    factor = float(factors.max())
    if np.all(factors == 1.0):
        return None
    known = factors.shape == (head_dim // 2,) and factor > 1.0
    if not known or not np.allclose(factors, llama3_factors(theta, head_dim, factor), rtol=1e-4):
        raise CheckpointError(
            f"{file.path}: tensor {ROPE_FACTORS!r}: expected the frequency factors of Llama 3 "
            f"(low 1, high 4, original context {_ORIGINAL_CONTEXT})"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW_FREQUENCY,
        "high_freq_factor": _HIGH_FREQUENCY,
        "original_max_position_embeddings": _ORIGINAL_CONTEXT,
    }
