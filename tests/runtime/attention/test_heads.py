"""Attention over heads against plain softmax in float64, and against itself in other company."""

import random

import pytest
import torch
from tests.support.kernels import native_library
from torch import Tensor

from twinflow.parallel.kv_layout import KVLayout
from twinflow.protos.errors import ConfigError
from twinflow.runtime.attention.registry import (
    AttentionBuilder,
    create_attention,
    register_attention,
)
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.attention.tiled import TiledAttention
from twinflow.runtime.kernels.native_attention import NativeAttention
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.model_runner import SequenceRows

CPU = torch.device("cpu")


class Bench:
    """A cache filled at random, and one sequence of some length after another in it."""

    def __init__(
        self,
        lengths: list[int],
        num_heads: int,
        layout: KVLayout,
        build: AttentionBuilder,
        scale: float = 1.0,
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        tables, free = [], 1
        for length in lengths:
            count = -(-length // layout.block_size)
            tables.append(list(range(free, free + count)))
            free += count
        random.Random(2).shuffle(order := list(range(1, free)))
        self.tables = [[order[block - 1] for block in table] for table in tables]
        self.cache = KVCache(layout, free, CPU)
        data = torch.randn(self.cache.data.shape, generator=generator) * scale
        self.cache.data.copy_(data)
        self.cache.data[0] = float("nan")  # nobody may read the null block
        dim = layout.parts[0].width
        self.queries = [torch.randn(n, num_heads, dim, generator=generator) for n in lengths]
        self.attention = build(self.cache, num_heads)

    def attend(self, parts: list[tuple[int, int, int]], layer: int) -> list[Tensor]:
        """Attention of (sequence, first position, number of rows), all in one step."""
        groups = [
            SequenceRows([0] * count, start, self.tables[sequence], samples=False)
            for sequence, start, count in parts
        ]
        self.attention.prepare(FlatRows.build(groups, self.cache.layout.block_size))
        queries = [self.queries[s][start : start + count] for s, start, count in parts]
        result = self.attention.attend(layer, torch.cat(queries))
        return list(torch.split(result.clone(), [count for _, _, count in parts]))

    def expected(self, sequence: int, layer: int) -> Tensor:
        """Softmax attention of all rows of a sequence, in float64."""
        queries = self.queries[sequence].double()
        length, num_heads, _ = queries.shape
        table = self.tables[sequence]
        keys, values = self.heads(table, layer, length, "keys"), self.heads(table, layer, length)
        group = num_heads // len(keys)
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        scores = torch.einsum("qhd,hkd->hqk", queries, keys)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.einsum("hqk,hkd->qhd", weights, values)

    def heads(self, table: list[int], layer: int, length: int, kind: str = "values") -> Tensor:
        """[KV heads, length, head_dim] float64 of one sequence."""
        found = []
        for part in range(len(self.cache.layout.parts)):
            pages = self.cache.part(part)[table, layer].double()  # [blocks, planes, slots, dim]
            keys, values = pages.transpose(0, 1).flatten(1, 2)[:, :length].chunk(2)
            found.append(keys if kind == "keys" else values)
        return torch.cat(found)


def layout(**changes: int | str) -> KVLayout:
    fields: dict[str, int | str] = {
        "num_layers": 2,
        "kv_heads": 2,
        "head_dim": 16,
        "block_size": 16,
        "dtype": "float32",
    }
    return KVLayout.of_heads(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(params=["tiled", "native"])
def build(request: pytest.FixtureRequest) -> AttentionBuilder:
    """Makes a kernel for a cache and a number of query heads."""
    if request.param == "tiled":
        return TiledAttention
    library = native_library()
    return lambda cache, num_heads: NativeAttention(cache, num_heads, library)


@pytest.mark.parametrize(
    ("num_heads", "changes"),
    [
        (6, {}),
        (2, {}),  # as many KV heads as query heads
        (7, {"kv_heads": 1}),
        (8, {"head_dim": 24, "block_size": 8}),
        (4, {"head_dim": 64, "block_size": 1}),
        (4, {"block_size": 256}),
        (8, {"kv_heads": 4, "parts": 2}),
        (4, {"parts": 2}),
    ],
)
def test_equals_softmax_attention(
    num_heads: int, changes: dict[str, int | str], build: AttentionBuilder
) -> None:
    lengths = [1, 5, 128, 129, 300]
    bench = Bench(lengths, num_heads, layout(**changes), build)
    for layer in range(2):
        found = bench.attend([(s, 0, length) for s, length in enumerate(lengths)], layer)
        for sequence, rows in enumerate(found):
            expected = bench.expected(sequence, layer)
            torch.testing.assert_close(rows.double(), expected, atol=3e-5, rtol=1e-5)


def test_equals_softmax_attention_over_several_spans(build: AttentionBuilder) -> None:
    bench = Bench([2500], 4, layout(), build)
    (found,) = bench.attend([(0, 0, 2500)], layer=1)
    torch.testing.assert_close(found.double(), bench.expected(0, 1), atol=3e-5, rtol=1e-5)


def test_large_scores_neither_overflow_nor_leak_hidden_keys(build: AttentionBuilder) -> None:
    bench = Bench([200], 4, layout(), build, scale=40.0)
    (found,) = bench.attend([(0, 0, 200)], layer=0)
    torch.testing.assert_close(found.double(), bench.expected(0, 0), atol=1e-2, rtol=1e-3)


def test_bfloat16_cache_is_attended_to_in_float32(build: AttentionBuilder) -> None:
    bench = Bench([150, 20], 4, layout(dtype="bfloat16"), build)
    for sequence, rows in enumerate(bench.attend([(0, 0, 150), (1, 0, 20)], layer=1)):
        assert rows.dtype is torch.float32
        expected = bench.expected(sequence, 1)
        torch.testing.assert_close(rows.double(), expected, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_a_row_is_bit_identical_in_any_company(seed: int, build: AttentionBuilder) -> None:
    source = random.Random(seed)
    lengths = [source.randrange(1, 1400), source.randrange(1, 300), source.randrange(1, 40)]
    num_heads, kv_heads = source.choice([(4, 2), (6, 2), (9, 3), (3, 3), (7, 1)])
    bench = Bench(lengths, num_heads, layout(kv_heads=kv_heads), build)
    if not bench.attention.batch_invariant:
        pytest.skip("the batched matrix product of this machine is not batch invariant")
    alone = [bench.attend([(s, 0, length)], 1)[0] for s, length in enumerate(lengths)]
    for _ in range(12):
        parts = []
        for sequence in source.sample(range(3), k=source.randrange(1, 4)):
            start = source.randrange(lengths[sequence])
            count = source.choice([1, 1, 2, 5, 37, 64, 200])
            parts.append((sequence, start, min(count, lengths[sequence] - start)))
        for (sequence, start, count), rows in zip(parts, bench.attend(parts, 1), strict=True):
            assert torch.equal(rows, alone[sequence][start : start + count])


def test_parts_change_no_bits(build: AttentionBuilder) -> None:
    """Where heads lie in memory is nobody else's business."""
    results = []
    for parts in (1, 2, 4):
        bench = Bench([300, 20], 8, layout(kv_heads=4, parts=parts), build)
        generator = torch.Generator().manual_seed(5)
        for table, length in zip(bench.tables, (300, 20), strict=True):
            group = SequenceRows([0] * length, 0, table, samples=False)
            bench.attention.prepare(FlatRows.build([group], 16))
            bench.attention.write(1, torch.randn(length, 8, 16, generator=generator))
        results.append(torch.cat(bench.attend([(0, 0, 300), (1, 3, 17)], layer=1)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_padding_rows_come_out_as_zeros(build: AttentionBuilder) -> None:
    bench = Bench([3], 4, layout(), build)
    group = SequenceRows([0] * 3, 0, bench.tables[0], samples=False)
    bench.attention.prepare(FlatRows.build([group], 16))
    queries = torch.cat((bench.queries[0], torch.full((5, 4, 16), float("nan"))))
    found = bench.attention.attend(0, queries)
    assert torch.equal(found[3:], torch.zeros(5, 4, 16))
    assert found[:3].isfinite().all()


def test_heads_must_divide(build: AttentionBuilder) -> None:
    with pytest.raises(ValueError, match="5 query heads cannot share 2 KV heads"):
        Bench([1], 5, layout(), build)


def test_writing_needs_rows(build: AttentionBuilder) -> None:
    with pytest.raises(RuntimeError, match="before prepare"):
        Bench([1], 4, layout(), build).attention.write(0, torch.zeros(1, 4, 16))


def test_registry_refuses_duplicates_and_unknown_names() -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_attention("tiled", TiledAttention)
    with pytest.raises(ConfigError, match=r"'flash'.*'tiled'"):
        create_attention("flash", KVCache(layout(), 2, CPU), 4)
