"""Every part that a receiving rank needs comes exactly once, from ranks that are used alike."""

import itertools
from collections import Counter

import pytest

from twinflow.parallel.handoff_plan import Route, plan_routes
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.latent.sharing.registry import create_sharing
from twinflow.parallel.latent.sharing.replicated import Replicated
from twinflow.parallel.ranks.base import Seat
from twinflow.protos.errors import HandoffError

SIZES = (1, 2, 4)
PAIRS = list(itertools.product(SIZES, SIZES))


def heads(ranks: int, parts: int) -> list[list[str]]:
    """What each rank holds of so many parts: its share, or one in common with neighbours."""
    each = max(1, parts // ranks)
    return [
        [f"heads {first + i}" for i in range(each)]
        for first in (rank * parts // ranks for rank in range(ranks))
    ]


def plan(sources: list[list[str]], targets: list[list[str]]) -> list[tuple[Route, ...]]:
    """The routes of all receiving ranks."""
    return [
        plan_routes(target, len(targets), needed, sources) for target, needed in enumerate(targets)
    ]


def check(sources: list[list[str]], targets: list[list[str]]) -> Counter[int]:
    """Check every property that does not depend on who holds what; returns parts sent by rank."""
    sent: Counter[int] = Counter()
    for needed, routes in zip(targets, plan(sources, targets), strict=True):
        brought = [part for route in routes for part in route.parts]
        assert sorted(brought) == sorted(needed)
        assert [route.source for route in routes] == sorted({route.source for route in routes})
        for route in routes:
            assert set(route.parts) <= set(sources[route.source])
            assert list(route.parts) == [part for part in needed if part in route.parts]
            sent[route.source] += len(route.parts)
    assert plan(sources, targets)[0][0].source == 0
    return sent


@pytest.mark.parametrize(("senders", "receivers"), PAIRS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
def test_heads_come_once_and_every_holder_sends_alike(
    kv_heads: int, senders: int, receivers: int
) -> None:
    parts = min(max(senders, receivers), kv_heads)
    sources, targets = heads(senders, parts), heads(receivers, parts)
    sent = check(sources, targets)
    for part in {part for held in sources for part in held}:
        holders = [rank for rank, held in enumerate(sources) if part in held]
        loads = [sent[rank] for rank in holders]
        assert max(loads) - min(loads) <= 1
    if receivers >= senders:
        assert len(sent) == senders
        assert len(set(sent.values())) == 1


@pytest.mark.parametrize(("senders", "receivers"), PAIRS)
@pytest.mark.parametrize("kind", ["replicated", "dcp", "tpla"])
@pytest.mark.parametrize("common", [0, 8])
def test_latents_come_once_and_every_holder_sends_alike(
    kind: str, common: int, senders: int, receivers: int
) -> None:
    for shards in (1, 2, 4):
        if receivers % shards or (kind == "replicated" and shards > 1):
            continue
        scheme = LatentScheme(kind=kind, shards=shards, common=common if kind == "tpla" else 0)  # type: ignore[arg-type]
        sources = [Replicated(scheme, Seat(r, senders)).part_names() for r in range(senders)]
        sharings: list[LatentSharing] = [
            create_sharing(scheme, Seat(r, receivers), Seat(r % shards, shards))
            for r in range(receivers)
        ]
        targets = [sharing.part_names() for sharing in sharings]
        sent = check(sources, targets)
        loads = [sent[rank] // len(targets[0]) for rank in range(senders)]
        assert max(loads) - min(loads) <= 1
        # All of a rank comes from one rank: one link, one conversation.
        assert all(len(routes) == 1 for routes in plan(sources, targets))


def test_neighbours_that_hold_the_same_send_to_different_ranks() -> None:
    one = ["heads 0-1"]
    assert plan([one] * 4, [one] * 2) == [(Route(0, ("heads 0-1",)),), (Route(2, ("heads 0-1",)),)]
    assert plan([one] * 2, [one] * 4) == [
        (Route(source, ("heads 0-1",)),) for source in (0, 0, 1, 1)
    ]


def test_a_part_that_nobody_holds_is_named() -> None:
    with pytest.raises(HandoffError, match=r"'latent 1/2', only \['latent 0/2', 'rope'\]"):
        plan_routes(0, 1, ["latent 0/2", "latent 1/2"], [["latent 0/2", "rope"]])
