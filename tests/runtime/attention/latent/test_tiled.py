"""Latent attention against plain softmax in float64, and against itself in other company."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.support.latent_bench import JoinedScores, LatentBench, Piece

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.dcp import ContextParallel
from twinflow.parallel.latent.sharing.registry import create_sharing
from twinflow.parallel.latent.sharing.tpla import TensorParallelLatent
from twinflow.parallel.ranks.base import OneRank
from twinflow.parallel.ranks.threads import Meeting, ThreadRanks
from twinflow.protos.errors import ConfigError
from twinflow.runtime.attention.latent import absorbed
from twinflow.runtime.attention.latent.base import EXPANDED_TOKENS, LatentHeads
from twinflow.runtime.attention.latent.registry import (
    create_latent_attention,
    register_latent_attention,
)
from twinflow.runtime.attention.latent.tiled import TiledLatentAttention
from twinflow.runtime.kv.cache import KVCache

SMALL = LatentHeads(num_heads=4, kv_rank=32, nope_dim=12, rope_dim=8, value_dim=16)
ODD = LatentHeads(num_heads=3, kv_rank=20, nope_dim=9, rope_dim=6, value_dim=7)
SIX_ODD = replace(ODD, num_heads=6)
# So large that not all heads are expanded at a time.
LARGE = LatentHeads(num_heads=8, kv_rank=64, nope_dim=300, rope_dim=16, value_dim=300)

LENGTHS = [1, 5, 128, 129, 300]


@pytest.mark.parametrize("heads", [SMALL, ODD, replace(SMALL, num_heads=20)])
@pytest.mark.parametrize("block_size", [1, 16, 256])
def test_generated_rows_equal_softmax_attention(heads: LatentHeads, block_size: int) -> None:
    bench = LatentBench(LENGTHS, heads, block_size=block_size)
    found, lse = bench.generated([Piece(s, 0, length) for s, length in enumerate(LENGTHS)])
    assert lse is None, "nobody merges"
    for sequence, rows in enumerate(found):
        mean, _ = bench.expected_generated(sequence)
        torch.testing.assert_close(rows.double(), mean, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [SMALL, ODD, LARGE])
@pytest.mark.parametrize("block_size", [1, 16, 256])
def test_prompt_rows_equal_softmax_attention(heads: LatentHeads, block_size: int) -> None:
    bench = LatentBench(LENGTHS, heads, block_size=block_size)
    pieces = [Piece(s, 0, length, length) for s, length in enumerate(LENGTHS)]
    for sequence, rows in enumerate(bench.prompt(pieces)):
        expected = bench.expected_prompt(sequence)
        torch.testing.assert_close(rows.double(), expected, atol=3e-5, rtol=1e-5)


def test_both_forms_over_several_spans() -> None:
    bench = LatentBench([1500], SMALL)
    (rows,) = bench.prompt([Piece(0, 100, 1400, 1500)])
    expected = bench.expected_prompt(0)[100:]
    torch.testing.assert_close(rows.double(), expected, atol=3e-5, rtol=1e-5)
    (rows,), _ = bench.generated([Piece(0, 1400, 100)])
    mean, _ = bench.expected_generated(0)
    torch.testing.assert_close(rows.double(), mean[1400:], atol=3e-6, rtol=1e-5)


def test_a_bfloat16_cache_is_attended_to_in_float32() -> None:
    bench = LatentBench([150, 20], ODD, dtype="bfloat16")
    bench.latents = [latents.bfloat16().float() for latents in bench.latents]
    bench.rope = [rope.bfloat16().float() for rope in bench.rope]
    found, _ = bench.generated([Piece(0, 0, 150), Piece(1, 0, 20)])
    for sequence, rows in enumerate(found):
        assert rows.dtype is torch.float32
        mean, _ = bench.expected_generated(sequence)
        torch.testing.assert_close(rows.double(), mean, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_row_is_bit_identical_in_any_company(seed: int) -> None:
    source = random.Random(seed)
    lengths = [source.randrange(1030, 1400), source.randrange(1, 300), source.randrange(1, 40)]
    bench = LatentBench(lengths, source.choice([SMALL, ODD]))
    if not bench.kernel.batch_invariant:
        pytest.skip("the batched matrix product of this machine is not batch invariant")
    whole = [Piece(s, 0, length, length) for s, length in enumerate(lengths)]
    prompts = [bench.prompt([piece])[0] for piece in whole]
    generated = [bench.generated([replace(piece, prompt=0)])[0][0] for piece in whole]
    for _ in range(10):
        pieces = []
        for sequence in source.sample(range(3), k=source.randrange(1, 4)):
            start = source.randrange(lengths[sequence])
            count = min(source.choice([1, 1, 2, 5, 37, 64, 200]), lengths[sequence] - start)
            pieces.append(Piece(sequence, start, count))
        for piece, rows in zip(pieces, bench.generated(pieces)[0], strict=True):
            expected = generated[piece.sequence][piece.start : piece.start + piece.count]
            assert torch.equal(rows, expected)
        pieces = [replace(piece, prompt=2000) for piece in pieces]
        for piece, rows in zip(pieces, bench.prompt(pieces), strict=True):
            expected = prompts[piece.sequence][piece.start : piece.start + piece.count]
            assert torch.equal(rows, expected)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("block_size", [8, 64])
def test_shares_of_the_blocks_merge_into_the_whole(size: int, block_size: int) -> None:
    """Every length from one token to one more than a block on each rank, and longer ones."""
    around = [n * block_size + d for n in range(1, size + 1) for d in (-1, 0, 1)]
    lengths = [1, *around, 3 * size * block_size + 5]
    scheme = LatentScheme(kind="dcp", shards=size)
    meeting = Meeting(size)
    means, totals = [], []
    for rank in range(size):
        ranks = ThreadRanks(rank, meeting) if size > 1 else OneRank()
        bench = LatentBench(lengths, SMALL, ContextParallel(scheme, ranks, ranks), block_size)
        last = [Piece(s, max(0, n - 3), min(n, 3)) for s, n in enumerate(lengths)]
        mean, lse = bench.generated(last)
        means.append(torch.cat(mean).double())
        # A rank that has everything has nothing to merge.
        totals.append(torch.zeros(means[0].shape[:2]) if lse is None else torch.cat(lse).double())
    all_means, totals_of_all = torch.stack(means), torch.stack(totals)
    assert all_means.isfinite().all()
    assert (all_means[totals_of_all.isinf()] == 0).all()
    shares = (totals_of_all - totals_of_all.logsumexp(0)).exp()
    expected = [bench.expected_generated(s) for s in range(len(lengths))]
    wanted = torch.cat([mean[-3:] for mean, _ in expected])
    merged = (all_means * shares.unsqueeze(-1)).sum(0)
    torch.testing.assert_close(merged, wanted, atol=3e-6, rtol=1e-5)
    if size > 1:
        assert totals_of_all.isinf().any(), "some rank holds nothing of a short sequence"
        sums = torch.cat([lse[-3:] for _, lse in expected])
        torch.testing.assert_close(totals_of_all.logsumexp(0), sums, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("common", [0, 8])
def test_slices_of_the_columns_are_attended_to_alone(common: int) -> None:
    scheme = LatentScheme(kind="tpla", shards=2, common=common)
    meeting = Meeting(2)
    for rank in range(2):
        ranks = ThreadRanks(rank, meeting)
        bench = LatentBench([140, 9], SMALL, create_sharing(scheme, ranks, ranks))
        columns = [c for held in bench.sharing.columns(32) for c in held]
        query_columns = [*columns, *range(32, 40)]
        bench.latents = [latents[:, columns] for latents in bench.latents]
        bench.absorbed = [queries[..., query_columns] for queries in bench.absorbed]
        bench.heads = replace(SMALL, kv_rank=len(columns))
        found, _ = bench.generated([Piece(0, 100, 40), Piece(1, 8, 1)])
        for sequence, (rows, start) in enumerate(zip(found, (100, 8), strict=True)):
            mean, _ = bench.expected_generated(sequence)
            torch.testing.assert_close(rows.double(), mean[start:], atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize(("heads", "common"), [(SMALL, 0), (SMALL, 8), (SIX_ODD, 4)])
def test_slices_of_the_columns_with_joined_scores_are_slices_of_the_whole(
    heads: LatentHeads, common: int
) -> None:
    """Over several spans and slabs, and next to a sequence of one token."""
    JoinedScores(heads, (1, 140, 1300), common).check(3e-6)


def test_scores_are_joined_at_once_or_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many fit into memory, the bits are the same."""
    joins: list[int] = []
    join = TensorParallelLatent.join_scores

    def counted(self: TensorParallelLatent, scores: torch.Tensor) -> None:
        joins.append(scores.numel())
        join(self, scores)

    monkeypatch.setattr(TensorParallelLatent, "join_scores", counted)
    bench = JoinedScores(SMALL, (1, 140, 2600))
    whole = bench.found()
    assert len(joins) == 2, "one for each rank"
    monkeypatch.setattr(absorbed, "_JOINED_SCORES", joins[0] // 2)
    joins.clear()
    parts = bench.found()
    assert len(joins) > 2
    for (_, ours), (_, theirs) in zip(whole, parts, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_padding_rows_come_out_as_zeros() -> None:
    bench = LatentBench([30], SMALL)
    bench.kernel.prepare(bench.rows([Piece(0, 27, 3)]))
    queries = torch.full((8, 4, 40), float("nan"))
    queries[:3] = bench.absorbed[0][27:]
    mean, _ = bench.kernel.attend_generated(1, queries)
    assert torch.equal(mean[3:], torch.zeros(5, 4, 32))
    assert mean[:3].isfinite().all()
    bench.kernel.prepare(bench.rows([Piece(0, 27, 3, prompt=30)]))
    queries = torch.full((8, 4, 20), float("nan"))
    queries[:3] = bench.queries[0][27:]
    found = bench.kernel.attend_prompt(1, queries, [lambda latents: latents @ bench.expand.T])
    assert torch.equal(found[3:], torch.zeros(5, 4, 16))
    assert found[:3].isfinite().all()


def test_what_is_expanded_at_a_time_is_bounded() -> None:
    bench = LatentBench([5000, 300, 10], SMALL)
    seen: list[int] = []

    def expand(latents: torch.Tensor) -> torch.Tensor:
        seen.append(len(latents))
        return F.linear(latents, bench.expand)

    pieces = [Piece(0, 4900, 100, 5000), Piece(1, 0, 300, 300), Piece(2, 0, 10, 10)]
    bench.kernel.prepare(bench.rows(pieces))
    queries = torch.cat([bench.queries[p.sequence][p.start :] for p in pieces])
    bench.kernel.attend_prompt(1, queries, [expand])
    assert max(seen) == EXPANDED_TOKENS
    assert all(count % 32 == 0 for count in seen)
    # Five spans of the long prompt; both short ones together, whole blocks of them.
    assert seen == [1024, 1024, 1024, 1024, 928, 320]
    deepseek = LatentHeads(num_heads=128, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128)
    assert deepseek.expanded_heads(16) * (192 + 128) * EXPANDED_TOKENS <= 1 << 21
    assert 16 % deepseek.expanded_heads(16) == 0


def test_the_cache_must_hold_the_ranks_columns() -> None:
    cache = LatentBench([1], ODD).cache
    with pytest.raises(ValueError, match=r"latents of \[20\] columns .* is to hold \[32\] and 8"):
        create_latent_attention("tiled", cache, SMALL, LatentBench([1], SMALL).sharing)


def test_registry_refuses_duplicates_and_unknown_names() -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_latent_attention("tiled", TiledLatentAttention)
    bench = LatentBench([1], SMALL)
    cache = KVCache(bench.cache.layout, 2, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"'flash'.*'tiled'"):
        create_latent_attention("flash", cache, SMALL, bench.sharing)
