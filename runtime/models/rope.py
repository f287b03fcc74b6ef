"""Rotary position embedding (RoFormer, arXiv 2104.09864) and its stretched variants.

The angle of a position and a pair of elements is `position * frequency`. Which frequencies a
variant uses follows what transformers computes, so that checkpoints mean the same here.

`dynamic` is the exception that needs a rule: transformers takes the length of the sequence *so
far* as the length to stretch to, so its keys depend on how a prompt was cut. Here position p is
always stretched to length p + 1, which is what transformers does when it decodes token by token.
A position's angles then depend on the position alone.
"""

import math

import torch
from torch import Tensor

from twinflow.runtime.models.config import ModelConfig, RopeScaling

# The table grows by whole chunks, so that an entry never depends on how far it was grown.
_CHUNK = 1024


def frequencies(config: ModelConfig, positions: Tensor) -> Tensor:
    """Angular frequency of each pair of elements, in radians per position.

    Args:
        config: `head_dim`, `rope_theta` and `rope_scaling` are used.
        positions: [positions] of the sequence.

    Returns:
        float32 [positions or 1, head_dim / 2]; one row if it is the same at all positions.
    """
    scaling = config.rope_scaling
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device)
    exponents = pairs / config.head_dim
    plain = 1.0 / config.rope_theta**exponents
    if scaling is None:
        return plain[None]
    match scaling.kind:
        case "linear":
            return plain[None] / scaling.factor
        case "dynamic":
            return 1.0 / _dynamic_theta(config, scaling, positions)[:, None] ** exponents
        case "llama3":
            return _llama3(plain, config, scaling)[None]
        case "yarn":
            return _yarn(plain, config, scaling)[None]


def attention_scale(scaling: RopeScaling | None) -> float:
    """Factor on cosine and sine (YaRN, arXiv 2309.00071, equation 22), 1 for other kinds.

    `mscale` and `mscale_all_dim` are DeepSeek's generalisation: the ratio of the two scales.
    """
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _yarn_scale(scaling.factor, scaling.mscale) / _yarn_scale(
            scaling.factor, scaling.mscale_all_dim
        )
    return _yarn_scale(scaling.factor, 1.0)


def latent_softmax_scale(scaling: RopeScaling | None) -> float:
    """Factor on the logits of latent attention: YaRN's scale once for queries, once for keys.

    Other attention has the scale in cosine and sine; there, elements without rotary position
    would miss it (DeepSeek-V2, arXiv 2405.04434, section 3.1.4).
    """
    if scaling is None or scaling.kind != "yarn" or not scaling.mscale_all_dim:
        return 1.0
    return _yarn_scale(scaling.factor, scaling.mscale_all_dim) ** 2


class RotaryTable:
    """Cosines and sines of all positions up to the largest one asked for.

    Args:
        config: of the model.
        device: where the rows are.
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._table = torch.empty(0, 2 * config.head_dim, dtype=torch.float32, device=device)

    def lookup(self, positions: Tensor, end_position: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of positions.

        Args:
            positions: [rows] int64.
            end_position: more than any of them.

        Returns:
            Two float32 [rows, 1, head_dim]: cos, and sin with the sign that `rotate` needs.
        """
        # Two lanes may look up and extend it at the same time: each goes on with its own.
        table = self._table
        if end_position > len(table):
            table = self._table = self._extended(table, end_position)
        cos, sin = table.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
        return cos, sin

    def _extended(self, table: Tensor, end_position: int) -> Tensor:
        chunks = [table]
        for start in range(len(table), end_position, _CHUNK):
            positions = torch.arange(start, start + _CHUNK, device=self._device)
            angles = positions[:, None].float() * frequencies(self._config, positions)
            scale = attention_scale(self._config.rope_scaling)
            cos, sin = angles.cos() * scale, angles.sin() * scale
            chunks.append(torch.cat((cos, cos, -sin, sin), dim=-1))
        return torch.cat(chunks)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of each head.

    Args:
        heads: [rows, heads, head_dim], any dtype.
        cos: from `RotaryTable.lookup`.
        sin: from `RotaryTable.lookup`: negative in the first half.

    Returns:
        A new float32 [rows, heads, head_dim].
    """
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    # Products and sum stay separate operations: a fused one rounds differently at the end of a
    # vector register, which would make an element depend on its place.
    return (heads * cos).add_(swapped * sin)


def _dynamic_theta(config: ModelConfig, scaling: RopeScaling, positions: Tensor) -> Tensor:
    """Base of the frequencies at each position (NTK-aware scaling by u/emozilla)."""
    trained = scaling.original_max_position or config.max_position
    length = (positions + 1).clamp(min=trained).float()
    stretch = scaling.factor * length / trained - (scaling.factor - 1.0)
    return config.rope_theta * stretch ** (config.head_dim / (config.head_dim - 2))


def _llama3(plain: Tensor, config: ModelConfig, scaling: RopeScaling) -> Tensor:
    """Long wavelengths are stretched, short ones kept, those between mixed (Llama 3.1)."""
    trained = scaling.original_max_position or config.max_position
    turns = trained * plain / (2 * math.pi)  # of a pair within the trained context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - keep) * plain / scaling.factor + keep * plain


def _yarn_scale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn(plain: Tensor, config: ModelConfig, scaling: RopeScaling) -> Tensor:
    """NTK-by-parts interpolation (arXiv 2309.00071, section 3.2)."""
    trained = scaling.original_max_position or config.max_position

    def pair_with(turns: float) -> float:
        """Index of the pair that turns so often within the trained context."""
        wavelength = trained / (turns * 2 * math.pi)
        return config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_with(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_with(scaling.beta_slow)), config.head_dim - 1)
    pairs = torch.arange(len(plain), dtype=torch.float32, device=plain.device)
    stretch = ((pairs - low) / max(high - low, 1e-3)).clamp(0.0, 1.0)
    return stretch * plain / scaling.factor + (1.0 - stretch) * plain
