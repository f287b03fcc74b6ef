"""Gumbel noise from a counter: a pure function of (seed, position, vocabulary index).

The argmax of `logits + noise` is a draw from softmax(logits) (the Gumbel-max trick), so with this
noise a token does not depend on who else is in the batch, on how often the position was computed
or on which process computed it. There is no generator state to carry along.

The stream is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
OOPSLA 2014), entered at a key mixed from seed and position:

    key  = mix64(mix64(seed) + position * POSITION_STEP)
    bits = mix64(key + (v + 1) * GOLDEN)                     for vocabulary index v

Integer arithmetic wraps at 64 bits and is the same on every device. What follows is elementwise
fp32, so that it is the same for every batch on one kind of device; two kinds of device may differ
in the last bit of their logarithms.

Resolution: u = (m + 1/2) / 2**52 with m the upper 52 bits, rounded to fp32 and kept below 1.
Small u make large noise, which is what wins a race; there u has its full 52 bits, down to
2**-53. So noise reaches up to 36.7, and tokens as rare as 1e-12 are drawn at their true rate
within 0.1 %. The lower tail ends at -2.8 instead of -3.6 and below, which concerns the
worst 6e-8 of all draws.

This module does not choose tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
POSITION_STEP = 0xD1B54A32D192ED03
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_MASK = 2**64 - 1
_UNIFORM_BITS = 52
_LARGEST_BELOW_ONE = 1.0 - 2.0**-24


def mix64(value: int) -> int:
    """SplitMix64's finaliser: a bijection of [0, 2**64) whose output looks random."""
    value &= _MASK
    for shift, multiplier in _ROUNDS:
        value = (value ^ (value >> shift)) * multiplier & _MASK
    return value ^ (value >> _LAST_SHIFT)


def stream_key(seed: int, position: int) -> int:
    """Where the stream of a position starts.

    Args:
        seed: the sequence's seed, in [0, 2**64).
        position: absolute position of the token to choose; prompt tokens count.
    """
    return mix64(mix64(seed) + position * POSITION_STEP)


class NoiseSource:
    """Noise over one vocabulary, for whole rows or for some of their tokens.

    Args:
        vocab_size: columns of a row.
        device: where the noise is made.
        max_rows: most whole rows asked for at once; scratch memory is kept for them.
    """

    def __init__(self, vocab_size: int, device: torch.device, max_rows: int) -> None:
        self._device = device
        counters = torch.arange(1, vocab_size + 1, dtype=torch.int64, device=device)
        self._offsets = counters.mul_(_signed(GOLDEN))
        self._state = torch.empty((max_rows, vocab_size), dtype=torch.int64, device=device)
        self._scratch = torch.empty_like(self._state)

    def bits(self, keys: Sequence[int]) -> Tensor:
        """64 random bits per vocabulary index.

        Args:
            keys: a `stream_key` per row, at most `max_rows`.

        Returns:
            int64 [len(keys), vocab_size]; overwritten by the next call.
        """
        state = self._state[: len(keys)]
        torch.add(self._on_device(keys).unsqueeze(1), self._offsets, out=state)
        return _mix(state, self._scratch[: len(keys)])

    def gumbel(self, keys: Sequence[int]) -> Tensor:
        """Standard Gumbel noise for whole rows, fp32 [len(keys), vocab_size]."""
        return gumbel_from_bits(self.bits(keys), self._scratch[: len(keys)])

    def gumbel_at(self, keys: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
        """The values of `gumbel(keys)` at [rows[i], columns[i]], without making the others.

        Args:
            keys: a `stream_key` per row.
            rows: int64 [n], indices of `keys`.
            columns: int64 [n], vocabulary indices.
        """
        state = self._on_device(keys).index_select(0, rows)
        state.add_(self._offsets.index_select(0, columns))
        scratch = torch.empty_like(state)
        return gumbel_from_bits(_mix(state, scratch), scratch)

    def _on_device(self, keys: Sequence[int]) -> Tensor:
        return torch.tensor([_signed(key) for key in keys], dtype=torch.int64, device=self._device)


def uniform_from_bits(bits: Tensor, scratch: Tensor) -> Tensor:
    """Uniform values strictly between 0 and 1, fp32; `scratch` is int64 like `bits`."""
    upper = _shift_right(bits, 64 - _UNIFORM_BITS, scratch)
    uniform = upper.to(torch.float32).add_(0.5).mul_(2.0**-_UNIFORM_BITS)
    return uniform.clamp_(max=_LARGEST_BELOW_ONE)


def gumbel_from_bits(bits: Tensor, scratch: Tensor) -> Tensor:
    """Standard Gumbel values, fp32; `scratch` is int64 like `bits`."""
    exponential = uniform_from_bits(bits, scratch).neg_().log1p_().neg_()
    return exponential.log_().neg_()


def _mix(state: Tensor, scratch: Tensor) -> Tensor:
    """`mix64` of every element, in place."""
    for shift, multiplier in _ROUNDS:
        _xor_shifted(state, shift, scratch).mul_(_signed(multiplier))
    return _xor_shifted(state, _LAST_SHIFT, scratch)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned value."""
    return value - 2**64 if value >= 2**63 else value


def _shift_right(value: Tensor, shift: int, out: Tensor) -> Tensor:
    """Logical shift of int64: torch's own copies the sign bit."""
    torch.bitwise_right_shift(value, shift, out=out)
    return out.bitwise_and_((1 << (64 - shift)) - 1)


def _xor_shifted(value: Tensor, shift: int, scratch: Tensor) -> Tensor:
    return value.bitwise_xor_(_shift_right(value, shift, scratch))
