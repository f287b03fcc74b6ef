"""The Triton kernels of latent attention against plain softmax in float64, at DeepSeek's widths.

They run on a CUDA device. Where there is none but Triton is installed, its interpreter runs them
on the CPU: `TRITON_INTERPRET=1 pytest tests/gpu/test_latent_kernels.py`. It checks the arithmetic
and who reads what, but not bfloat16, whose products it takes from the bit patterns.
"""

import random
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from tests.support.latent_bench import JoinedScores, LatentBench, Piece

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.latent.sharing.registry import create_sharing
from twinflow.parallel.latent.sharing.replicated import Replicated
from twinflow.parallel.ranks.base import OneRank
from twinflow.parallel.ranks.threads import Meeting, ThreadRanks
from twinflow.protos.errors import ConfigError
from twinflow.runtime.attention.latent.base import LatentHeads
from twinflow.runtime.attention.latent.registry import create_latent_attention, latent_attention_for


def triton_interprets() -> bool:
    """Whether Triton is installed and told to interpret kernels."""
    if find_spec("triton") is None:
        return False
    import triton  # noqa: PLC0415  may be absent

    return bool(triton.knobs.runtime.interpret)


HAS_CUDA = torch.cuda.is_available()
needs_kernels = pytest.mark.skipif(
    not (HAS_CUDA or triton_interprets()),
    reason="needs a CUDA device, or Triton with TRITON_INTERPRET=1",
)
DEVICE = "cuda" if HAS_CUDA else "cpu"

# Widths of DeepSeek-V2, V3 and Kimi-K2. The prompt form is another kernel's: its sizes are small.
WIDE = LatentHeads(num_heads=16, kv_rank=512, nope_dim=16, rope_dim=64, value_dim=16)
ODD = LatentHeads(num_heads=3, kv_rank=20, nope_dim=9, rope_dim=6, value_dim=7)
SPLIT = 512  # slots, with up to 32 heads
# Around blocks, tiles of 16 and 32 tokens, and splits.
LENGTHS = [1, 2, 15, 16, 17, 31, 33, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT + 40]
TOLERANCES = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}

float_types = pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "float16",
        pytest.param(
            "bfloat16",
            marks=pytest.mark.skipif(
                not HAS_CUDA, reason="Triton's interpreter does not multiply bfloat16"
            ),
        ),
    ],
)


def triton_bench(
    lengths: list[int],
    heads: LatentHeads,
    sharing: LatentSharing | None = None,
    block_size: int = 16,
    dtype: str = "float32",
) -> LatentBench:
    """Sequences in a cache of a dtype, and what float64 is to see of them."""
    bench = LatentBench(lengths, heads, sharing, block_size, dtype, DEVICE, kernel="triton")
    stored = bench.cache.layout.torch_dtype
    bench.latents = [latents.to(stored).float() for latents in bench.latents]
    bench.rope = [rope.to(stored).float() for rope in bench.rope]
    return bench


def see_columns_only(bench: LatentBench) -> None:
    """Let the float64 of a rank that holds some columns know no others."""
    columns = [c for held in bench.sharing.columns(bench.heads.kv_rank) for c in held]
    rope = range(bench.heads.kv_rank, bench.heads.kv_rank + bench.heads.rope_dim)
    bench.latents = [latents[:, columns] for latents in bench.latents]
    bench.absorbed = [queries[..., [*columns, *rope]].contiguous() for queries in bench.absorbed]
    bench.heads = replace(bench.heads, kv_rank=len(columns))


def last_rows(lengths: list[int], count: int = 2) -> list[Piece]:
    return [Piece(s, max(0, n - count), min(n, count)) for s, n in enumerate(lengths)]


def assert_softmax_attention(bench: LatentBench, pieces: list[Piece], tolerance: float) -> None:
    found, lse = bench.generated(pieces)
    for at, (piece, rows) in enumerate(zip(pieces, found, strict=True)):
        mean, total = bench.expected_generated(piece.sequence, piece.start)
        expected = mean[: piece.count]
        torch.testing.assert_close(rows.double().cpu(), expected, atol=tolerance, rtol=tolerance)
        if lse is not None:
            torch.testing.assert_close(
                lse[at].double().cpu(), total[: piece.count], atol=tolerance, rtol=tolerance
            )


@needs_kernels
@pytest.mark.gpu
@pytest.mark.slow
@float_types
@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("num_heads", [4, 40])
def test_slices_of_the_columns_equal_softmax_attention(
    num_heads: int, shards: int, dtype: str
) -> None:
    """Latents of 512/g columns and all of the rotary keys, as a rank of tpla holds them."""
    scheme, meeting = LatentScheme(kind="tpla", shards=shards), Meeting(shards)
    ranks = ThreadRanks(shards - 1, meeting) if shards > 1 else OneRank()
    heads = replace(WIDE, num_heads=num_heads)
    bench = triton_bench(LENGTHS, heads, create_sharing(scheme, ranks, ranks), dtype=dtype)
    see_columns_only(bench)
    assert_softmax_attention(bench, last_rows(LENGTHS), TOLERANCES[dtype])


@needs_kernels
@pytest.mark.gpu
@float_types
def test_a_layer_with_joined_scores_leaves_the_kernel_for_tiles(dtype: str) -> None:
    settings = {"dtype": dtype, "device": DEVICE, "kernel": "triton"}
    JoinedScores(WIDE, (1, 17, SPLIT + 1), 128, settings).check(TOLERANCES[dtype])


@needs_kernels
@pytest.mark.gpu
@float_types
@pytest.mark.parametrize("shards", [2, 4])
def test_shares_of_the_blocks_merge_into_the_whole(shards: int, dtype: str) -> None:
    """Means and log-sum-exps, also of ranks that hold nothing of a short sequence."""
    lengths = [1, 16, 17, 33, 64, 65, shards * SPLIT + 3]
    scheme, meeting = LatentScheme(kind="dcp", shards=shards), Meeting(shards)
    means, totals = [], []
    for rank in range(shards):
        ranks = ThreadRanks(rank, meeting)
        bench = triton_bench(lengths, WIDE, create_sharing(scheme, ranks, ranks), dtype=dtype)
        mean, lse = bench.generated(last_rows(lengths, 1))
        assert lse is not None, "somebody has to merge"
        means.append(torch.cat(mean).double().cpu())
        totals.append(torch.cat(lse).double().cpu())
    all_means, all_totals = torch.stack(means), torch.stack(totals)
    assert (all_means[all_totals.isinf()] == 0).all()
    assert all_totals.isinf().any(), "some rank holds nothing of a short sequence"
    expected = [bench.expected_generated(s, n - 1) for s, n in enumerate(lengths)]
    merged = (all_means * (all_totals - all_totals.logsumexp(0)).exp().unsqueeze(-1)).sum(0)
    tolerance = TOLERANCES[dtype]
    wanted = torch.cat([mean for mean, _ in expected])
    torch.testing.assert_close(merged, wanted, atol=tolerance, rtol=tolerance)
    sums = torch.cat([total for _, total in expected])
    torch.testing.assert_close(all_totals.logsumexp(0), sums, atol=tolerance, rtol=tolerance)


@needs_kernels
@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [1, 16, 256])
@pytest.mark.parametrize("scheme", [LatentScheme(), LatentScheme(kind="tpla", shards=4)])
def test_odd_widths_and_all_slices_of_a_cut_cache(scheme: LatentScheme, block_size: int) -> None:
    sharing = Replicated(scheme, OneRank())
    bench = triton_bench([1, 15, 140], ODD, sharing, block_size)
    assert_softmax_attention(bench, last_rows([1, 15, 140], 3), TOLERANCES["float32"])


@needs_kernels
@pytest.mark.gpu
def test_common_columns_before_a_slice() -> None:
    scheme, meeting = LatentScheme(kind="tpla", shards=2, common=128), Meeting(2)
    for rank in range(2):
        ranks = ThreadRanks(rank, meeting)
        bench = triton_bench([40, SPLIT + 9], WIDE, create_sharing(scheme, ranks, ranks))
        see_columns_only(bench)
        assert_softmax_attention(bench, last_rows([40, SPLIT + 9]), TOLERANCES["float32"])


@needs_kernels
@pytest.mark.gpu
@float_types
def test_a_row_is_bit_identical_in_any_company(dtype: str) -> None:
    source = random.Random(3)
    lengths = [2 * SPLIT + 70, 300, 33, 1]
    bench = triton_bench(lengths, WIDE, dtype=dtype)
    rows = [(sequence, source.randrange(lengths[sequence])) for sequence in range(4)] * 2
    rows += [(0, lengths[0] - 1), (0, SPLIT), (0, SPLIT - 1)]
    alone = {row: bench.generated([Piece(*row, 1)])[0][0] for row in set(rows)}
    for _ in range(5):
        company = source.sample(rows, k=source.randrange(2, len(rows)))
        found, _ = bench.generated([Piece(*row, 1) for row in company])
        for row, result in zip(company, found, strict=True):
            assert torch.equal(result, alone[row])


@needs_kernels
@pytest.mark.gpu
def test_work_of_bounded_size_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from twinflow.runtime.attention.latent import triton_absorbed  # noqa: PLC0415  may be absent

    lengths = [3 * SPLIT, 20, SPLIT + 1, 5]
    bench = triton_bench(lengths, ODD)
    together, _ = bench.generated(last_rows(lengths))
    monkeypatch.setattr(triton_absorbed, "_PART_ELEMENTS", 2 * ODD.num_heads * ODD.kv_rank)
    apart, _ = bench.generated(last_rows(lengths))
    assert len(bench.kernel._absorbed._launches) > 3  # type: ignore[attr-defined]
    for some, others in zip(together, apart, strict=True):
        assert torch.equal(some, others)


@needs_kernels
@pytest.mark.gpu
def test_padding_rows_come_out_as_zeros() -> None:
    bench = triton_bench([30], ODD)
    bench.kernel.prepare(bench.rows([Piece(0, 27, 3)]))
    queries = torch.full((8, 3, 26), float("nan"), device=DEVICE)
    queries[:3] = bench.absorbed[0][27:].to(DEVICE)
    mean, lse = bench.kernel.attend_generated(1, queries)
    assert lse is None, "nobody merges"
    assert torch.equal(mean[3:].cpu(), torch.zeros(5, 3, 20))
    assert mean[:3].isfinite().all()


@needs_kernels
@pytest.mark.gpu
def test_prompts_take_the_expanded_form() -> None:
    bench = triton_bench([40, 3], ODD)
    for sequence, rows in enumerate(bench.prompt([Piece(0, 0, 40, 40), Piece(1, 0, 3, 3)])):
        expected = bench.expected_prompt(sequence)
        torch.testing.assert_close(rows.double().cpu(), expected, atol=3e-5, rtol=1e-5)


def test_the_device_decides_which_kernel_is_taken() -> None:
    assert latent_attention_for(torch.device("cpu")) == "tiled"
    with_triton = find_spec("triton") is not None
    expected = "triton" if with_triton else "tiled"
    assert latent_attention_for(torch.device("cuda", 0)) == expected


@pytest.mark.skipif(find_spec("triton") is not None, reason="Triton is installed")
def test_asking_for_triton_without_it_is_refused() -> None:
    bench = LatentBench([1], ODD)
    with pytest.raises(ConfigError, match="'triton': needs the package triton"):
        create_latent_attention("triton", bench.cache, ODD, bench.sharing)
