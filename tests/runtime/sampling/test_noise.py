"""The noise stream: fixed for ever, uniform, and free of visible structure."""

import math

import pytest
import torch

from twinflow.runtime.sampling.noise import (
    GOLDEN,
    NoiseSource,
    gumbel_from_bits,
    mix64,
    stream_key,
    uniform_from_bits,
)

VOCAB = 4096


def source(vocab_size: int = VOCAB, max_rows: int = 64) -> NoiseSource:
    return NoiseSource(vocab_size, torch.device("cpu"), max_rows)


def uniforms(keys: list[int], vocab_size: int = VOCAB) -> torch.Tensor:
    bits = source(vocab_size, len(keys)).bits(keys)
    return uniform_from_bits(bits, torch.empty_like(bits)).double()


def test_the_stream_never_changes() -> None:
    # The first outputs of SplitMix64 seeded with 1234567, as published with the algorithm.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [mix64(1234567 + n * GOLDEN) for n in (1, 2, 3)] == published
    assert stream_key(0, 0) == 0
    assert stream_key(0, 1) == 0x8209B480FAED1B10
    assert stream_key(2**64 - 1, 123_456) == 0x3C59F443295C2800


def test_bits_are_those_of_the_scalar_definition() -> None:
    keys = [stream_key(seed, position) for seed in (0, 7, 2**64 - 1) for position in (0, 1, 99)]
    bits = source(513).bits(keys)
    expected = [[mix64(key + (v + 1) * GOLDEN) for v in range(513)] for key in keys]
    assert [[value % 2**64 for value in row] for row in bits.tolist()] == expected


def test_a_row_does_not_depend_on_the_other_rows() -> None:
    keys = [stream_key(5, position) for position in range(17)]
    together = source(1001, 17).gumbel(keys)
    for row, key in enumerate(keys):
        assert torch.equal(source(1001, 1).gumbel([key])[0], together[row])


def test_single_values_are_those_of_the_whole_row() -> None:
    keys = [stream_key(6, position) for position in range(5)]
    whole = source(1001, 5).gumbel(keys)
    rows, columns = (whole > 2.0).nonzero(as_tuple=True)
    assert len(rows) > 100
    assert torch.equal(source(1001, 1).gumbel_at(keys, rows, columns), whole[rows, columns])


def test_uniform_values_stay_inside_the_open_interval() -> None:
    values = uniforms([stream_key(1, position) for position in range(64)])
    assert values.min() > 0.0 and values.max() < 1.0
    gumbel = source().gumbel([stream_key(1, position) for position in range(64)])
    assert torch.isfinite(gumbel).all()


def test_extreme_bits_give_finite_noise() -> None:
    extremes = torch.tensor([0, -1])  # all bits clear, all bits set
    scratch = torch.empty_like(extremes)
    assert uniform_from_bits(extremes, scratch).tolist() == [2.0**-53, 1.0 - 2.0**-24]
    largest, smallest = gumbel_from_bits(extremes, scratch).tolist()
    assert largest == pytest.approx(53 * math.log(2))
    assert smallest == pytest.approx(-math.log(24 * math.log(2)))


@pytest.mark.parametrize("keys", ["positions", "seeds"])
def test_values_are_uniform(keys: str) -> None:
    """Chi-square over 1024 bins: 262144 draws, mean 1023, standard deviation 45."""
    stream = [stream_key(3, i) if keys == "positions" else stream_key(i, 3) for i in range(64)]
    counts = torch.histc(uniforms(stream), bins=1024, min=0.0, max=1.0)
    expected = counts.sum() / 1024
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert abs(statistic - 1023) < 4 * 45


def test_small_values_are_as_frequent_as_they_should_be() -> None:
    """The winners of a race come from here: 16.8 million draws, powers of two down to 2**-18."""
    values = torch.cat([uniforms([stream_key(9, p)], 2**18).ravel() for p in range(64)])
    for exponent in (8, 12, 16, 18):
        expected = values.numel() * 2.0**-exponent
        found = int((values < 2.0**-exponent).sum())
        assert abs(found - expected) < 5 * math.sqrt(expected)


def test_every_bit_is_fair_and_flips_with_the_counter() -> None:
    bits = torch.stack([source().bits([stream_key(11, p)])[0] for p in range(64)])
    limit = 5 * math.sqrt(bits.numel()) / 2
    for bit in range(64):
        ones = (bits >> bit) & 1
        assert abs(int(ones.sum()) - bits.numel() / 2) < limit
        flips = ones[:, 1:] ^ ones[:, :-1]
        assert abs(int(flips.sum()) - flips.numel() / 2) < limit


@pytest.mark.parametrize("lag", [1, 2, 3, 64])
def test_neighbours_are_uncorrelated(lag: int) -> None:
    """Neighbouring tokens, positions and seeds; |r| of n pairs stays below 5 / sqrt(n)."""
    by_position = uniforms([stream_key(21, p) for p in range(128)]) - 0.5
    by_seed = uniforms([stream_key(s, 21) for s in range(1000, 1128)]) - 0.5
    for left, right in (
        (by_position[:, lag:], by_position[:, :-lag]),
        (by_position[lag:], by_position[:-lag]),
        (by_seed[lag:], by_seed[:-lag]),
        (by_position, by_seed),
    ):
        correlation = float((left * right).mean() * 12)
        assert abs(correlation) < 5 / math.sqrt(left.numel())


def test_gumbel_moments() -> None:
    values = source().gumbel([stream_key(2, p) for p in range(64)]).double()
    count = values.numel()
    variance = math.pi**2 / 6
    assert abs(float(values.mean()) - 0.5772156649) < 5 * math.sqrt(variance / count)
    # The fourth central moment of the Gumbel distribution is 5.4 times the variance squared.
    assert abs(float(values.var()) - variance) < 5 * variance * math.sqrt(4.4 / count)
