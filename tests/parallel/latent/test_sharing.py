"""Which heads, columns and blocks are whose, for every kind of sharing and cut."""

from dataclasses import replace

import pytest
import torch
from tests.support.latent_models import run_latent_ranks
from torch import Tensor

from twinflow.parallel.kv_part import KVPart
from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.latent.sharing.registry import create_sharing, register_sharing
from twinflow.parallel.latent.sharing.replicated import Replicated
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.parallel.ranks.threads import Meeting, ThreadRanks
from twinflow.protos.errors import ConfigError

HEADS, RANK = 8, 24
SCHEMES = [
    LatentScheme(),
    LatentScheme(kind="dcp", shards=2),
    LatentScheme(kind="dcp", shards=4),
    LatentScheme(kind="tpla", shards=1),
    LatentScheme(kind="tpla", shards=2),
    LatentScheme(kind="tpla", shards=4),
    LatentScheme(kind="tpla", shards=2, common=4),
]


def sharings(scheme: LatentScheme, size: int = 4) -> list[LatentSharing]:
    return run_latent_ranks(size, scheme, lambda _ranks, plan: plan.sharing)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.meaning)
def test_every_head_of_a_prompt_is_one_ranks_and_among_those_it_outputs(
    scheme: LatentScheme,
) -> None:
    found = sharings(scheme)
    assert [head for one in found for head in one.prompt_heads(HEADS)] == list(range(HEADS))
    for one in found:
        assert set(one.prompt_heads(HEADS)) <= set(one.output_heads(HEADS))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.meaning)
def test_every_head_gets_the_values_of_every_column_once(scheme: LatentScheme) -> None:
    counts = torch.zeros(HEADS, RANK)
    for one in sharings(scheme):
        for head in one.output_heads(HEADS):
            for columns in one.value_columns(RANK):
                counts[head, columns.start : columns.stop] += 1
                assert columns in one.columns(RANK)
    assert (counts == 1).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.meaning)
def test_what_a_rank_holds_is_named_in_the_layout(scheme: LatentScheme) -> None:
    parts = {part.name: part for part in scheme.parts(RANK, 6)}
    assert sum(part.width for part in parts.values()) == RANK + 6
    for one in sharings(scheme):
        *pieces, rope = one.part_names()
        assert rope == "rope"
        assert [parts[name].width for name in pieces] == [len(c) for c in one.columns(RANK)]
    prefill = Replicated(scheme, OneRank())
    assert prefill.part_names() == list(parts)
    assert [column for c in prefill.columns(RANK) for column in c] == list(range(RANK))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.meaning)
def test_whole_tokens_are_brought_together_in_order(scheme: LatentScheme) -> None:
    block_size, entries = 4, 3

    def work(_ranks: RankGroup, plan: LatentPlan) -> tuple[Tensor, Tensor]:
        sharing = plan.sharing
        share = sharing.block_share(block_size)
        tokens = torch.arange(entries * share.tokens_per_entry)
        latents = tokens[:, None] * 100.0 + torch.arange(RANK)
        columns = [column for c in sharing.columns(RANK) for column in c]
        held = torch.from_numpy(share.holds(tokens.numpy()))
        mine = latents[held][:, columns].view(entries, block_size, -1)
        rope = tokens[held].view(entries, block_size, 1).float()
        whole, keys = sharing.gather_tokens(mine, rope)
        assert torch.equal(whole, latents)
        assert torch.equal(keys[:, 0], tokens.float())
        return whole, keys

    run_latent_ranks(4, scheme, work)


def test_parts_of_a_page() -> None:
    scheme = LatentScheme(kind="tpla", shards=2, common=4)
    assert scheme.parts(24, 6) == (
        KVPart("latent common", 1, 4),
        KVPart("latent 0/2", 1, 10),
        KVPart("latent 1/2", 1, 10),
        KVPart("rope", 1, 6),
    )
    meanings = {replace(one, basis=basis).meaning for one in SCHEMES for basis in ("none", "x")}
    assert len(meanings) == 2 * len(SCHEMES)
    exact = {replace(scheme, exact_layers=layers).meaning for layers in ((), (1,), (1, 2), (12,))}
    assert len(exact) == 4


@pytest.mark.parametrize(("shards", "common"), [(2, 0), (2, 4), (4, 4)])
def test_scores_of_all_columns_are_the_sum_of_what_ranks_count_once(
    shards: int, common: int
) -> None:
    scheme = LatentScheme(kind="tpla", shards=shards, common=common, exact_layers=(1,))
    queries, keys = torch.arange(3 * 2 * (RANK + 6)).view(3, 2, -1).float(), torch.eye(RANK + 6)

    def work(_ranks: RankGroup, plan: LatentPlan) -> Tensor:
        sharing = plan.sharing
        assert sharing.can_join and sharing.joins(1) and not sharing.joins(0)
        columns = [column for c in sharing.columns(RANK) for column in c]
        held = [*columns, *range(RANK, RANK + 6)]
        mine = sharing.counted_once(queries[..., held], rope_dim=6)
        scores = (mine @ keys[held]).flatten(0, 1)
        sharing.join_scores(scores)
        return scores.view(queries.shape)

    for scores in run_latent_ranks(4, scheme, work):
        assert torch.equal(scores, queries)


def test_ranks_that_see_whole_scores_join_none() -> None:
    one_shard = LatentScheme(kind="tpla", shards=1, exact_layers=(0,))
    for scheme in (LatentScheme(), LatentScheme(kind="dcp", shards=2), one_shard):
        for sharing in sharings(scheme):
            assert not sharing.can_join and not sharing.joins(0)
    with pytest.raises(RuntimeError, match="by replicated add up no scores"):
        Replicated(LatentScheme(), OneRank()).join_scores(torch.zeros(1, 1))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be replicated over 2 shards"):
        LatentScheme(shards=2)
    with pytest.raises(ConfigError, match="4 common columns of dcp latents"):
        LatentScheme(kind="dcp", shards=2, common=4)
    with pytest.raises(ConfigError, match=r"exact layers \(1,\) of dcp latents"):
        LatentScheme(kind="dcp", shards=2, exact_layers=(1,))
    for layers in ((2, 1), (1, 1), (-1, 0)):
        with pytest.raises(ConfigError, match="of tpla latents"):
            LatentScheme(kind="tpla", shards=2, exact_layers=layers)
    with pytest.raises(ConfigError, match="24 columns cannot be cut into 5 slices"):
        LatentScheme(kind="tpla", shards=5).parts(24, 6)
    three = ThreadRanks(0, Meeting(3))
    with pytest.raises(ConfigError, match="3 ranks cannot form groups of 2 shards"):
        create_sharing(LatentScheme(kind="dcp", shards=2), three, ThreadRanks(0, Meeting(2)))
    with pytest.raises(ConfigError, match="1 ranks share a cache that is cut for 2"):
        create_sharing(LatentScheme(kind="dcp", shards=2), three, OneRank())
    with pytest.raises(ValueError, match="rank 0 cannot be shard 2 of 3"):
        create_sharing(LatentScheme(kind="dcp", shards=3), three, ThreadRanks(2, Meeting(3)))
    with pytest.raises(ConfigError, match="transformed by none, the deployment agreed on pca-1"):
        LatentPlan(Replicated(LatentScheme(basis="pca-1"), OneRank()))
    with pytest.raises(ValueError, match="'dcp' is already registered"):
        register_sharing("dcp", create_sharing)
