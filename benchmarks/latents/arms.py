"""One rank's decode attention to latents, in each layout, over random bytes.

Nothing is compared and no model is computed: what is timed is what a layer does between its
absorbed queries and its weighted means of latents.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.latent.kind import LatentKind
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.latent.sharing.registry import create_sharing
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.runtime.attention.latent.base import LatentHeads
from twinflow.runtime.attention.latent.registry import create_latent_attention, latent_attention_for
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.model_runner import SequenceRows

BASE = "replicated"
# `tpla exact` is a layer in which the ranks of tpla add up their scores.
EXCHANGES_SCORES = "tpla exact"
ARMS = (BASE, "dcp", "tpla", EXCHANGES_SCORES)
# Of the expanded form, which is not used.
_HEAD_DIM = 128


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is attended to.

    Attributes:
        heads: of all ranks together.
        context: cached tokens of each sequence.
        batch: sequences, of each of which one row attends.
        kv_rank: columns of a latent.
        rope_dim: elements of a rotary key.
        block_size: token slots of a block.
        dtype: of the cache.
    """

    heads: int
    context: int
    batch: int
    kv_rank: int = 512
    rope_dim: int = 64
    block_size: int = 16
    dtype: str = "bfloat16"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one step of one layer on one rank.

    Attributes:
        kernel: attention to what the rank holds. On a CPU seconds of its thread, which is the
            only one that computes: others who want the core do not count.
        total: what passes, with what is exchanged with other ranks.
    """

    kernel: float
    total: float


class Arm:
    """One rank of one layout.

    Args:
        name: of the layout.
        sizes: of everything.
        ranks: all ranks; they share one cache unless it is replicated.
        device: of the cache.

    Attributes:
        cached_bytes: of this rank, in one layer, for all sequences.
    """

    def __init__(self, name: str, sizes: Sizes, ranks: RankGroup, device: torch.device) -> None:
        shards = OneRank() if name == BASE else ranks
        self._sharing = create_sharing(_scheme(name, shards.size), ranks, shards)
        self._device = device
        heads = LatentHeads(sizes.heads, sizes.kv_rank, _HEAD_DIM, sizes.rope_dim, _HEAD_DIM)
        cache = _cache(sizes, self._sharing, device)
        self.cached_bytes = (cache.num_blocks - 1) * cache.layout.block_bytes
        kernel = latent_attention_for(device)
        self._kernel = create_latent_attention(kernel, cache, heads, self._sharing)
        entry = self._sharing.block_share(sizes.block_size).tokens_per_entry
        self._kernel.prepare(_rows(sizes, entry))
        width = sum(map(len, self._sharing.columns(sizes.kv_rank))) + sizes.rope_dim
        own = len(self._sharing.output_heads(sizes.heads))
        generator = torch.Generator().manual_seed(0)
        queries = torch.randn(sizes.batch, own, width, generator=generator)
        self._queries = (queries * width**-0.5).to(device)
        self._copies = self._sharing.attended_heads(sizes.heads) // own

    def step(self) -> Timing:
        """Attend as a decode step does, together with the other ranks."""
        start = self._passed()
        queries = self._sharing.gather_queries(self._queries)
        mean, lse, kernel = self._attend(queries.contiguous())
        self._sharing.merge(mean, lse)
        return Timing(kernel, self._passed() - start)

    def alone(self) -> Timing:
        """Attend with as many heads, and exchange nothing."""
        start = self._passed()
        _, _, kernel = self._attend(self._queries.repeat(1, self._copies, 1))
        return Timing(kernel, self._passed() - start)

    def _attend(self, queries: Tensor) -> tuple[Tensor, Tensor | None, float]:
        clock = self._passed if self._device.type == "cuda" else time.thread_time
        start = clock()
        mean, lse = self._kernel.attend_generated(0, queries)
        return mean, lse, clock() - start

    def _passed(self) -> float:
        """Seconds on the wall, once the device has done what it was told."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _scheme(name: str, shards: int) -> LatentScheme:
    if name == EXCHANGES_SCORES:
        return LatentScheme(kind="tpla", shards=shards, exact_layers=(0,))
    kinds: dict[str, LatentKind] = {BASE: "replicated", "dcp": "dcp", "tpla": "tpla"}
    return LatentScheme(kind=kinds[name], shards=shards)


def time_arms(
    arms: Mapping[str, Callable[[], Timing]],
    rounds: int,
    wait: Callable[[], object],
    warm_up: int = 2,
) -> dict[str, list[Timing]]:
    """Time every arm once in each round, one after the other.

    So whatever else the machine does hits all of them alike.

    Args:
        arms: what is timed.
        rounds: how often.
        wait: called before each, so that ranks begin together.
        warm_up: rounds before that are not counted.
    """
    found: dict[str, list[Timing]] = {name: [] for name in arms}
    for number in range(warm_up + rounds):
        for name, step in arms.items():
            wait()
            timing = step()
            if number >= warm_up:
                found[name].append(timing)
    return found


def _cache(sizes: Sizes, sharing: LatentSharing, device: torch.device) -> KVCache:
    scheme = sharing.scheme
    parts = scheme.parts(sizes.kv_rank, sizes.rope_dim)
    whole = KVLayout(1, sizes.block_size, sizes.dtype, parts, scheme.meaning)
    entries = _entries(sizes, sharing.block_share(sizes.block_size).tokens_per_entry)
    cache = KVCache(whole.only(sharing.part_names()), sizes.batch * entries + 1, device)
    page = torch.randn(cache.layout.page_elements, generator=torch.Generator().manual_seed(1))
    cache.data.copy_(page.to(cache.data))
    return cache


def _entries(sizes: Sizes, tokens_per_entry: int) -> int:
    return -(-sizes.context // tokens_per_entry)


def _rows(sizes: Sizes, tokens_per_entry: int) -> FlatRows:
    """The last token of every sequence; their blocks lie in no order, as after hours of serving."""
    entries = _entries(sizes, tokens_per_entry)
    order = 1 + np.random.default_rng(2).permutation(sizes.batch * entries)
    groups = [
        SequenceRows([0], sizes.context - 1, [*map(int, blocks)], True, 0)
        for blocks in order.reshape(sizes.batch, entries)
    ]
    return FlatRows.build(groups, tokens_per_entry)


def make_steps(
    sizes: Sizes, ranks: RankGroup, device: torch.device, *, alone: bool
) -> tuple[dict[str, Callable[[], Timing]], dict[str, int]]:
    """The steps of all arms, to be timed, and the cached bytes of each.

    Alone, nobody is there to exchange scores with in the middle of the kernel.
    """
    names = [name for name in ARMS if not (alone and name == EXCHANGES_SCORES)]
    arms = {name: Arm(name, sizes, ranks, device) for name in names}
    steps = {name: arm.alone if alone else arm.step for name, arm in arms.items()}
    return steps, {name: arm.cached_bytes for name, arm in arms.items()}


def fence(ranks: RankGroup, device: torch.device) -> Callable[[], Tensor]:
    """A wait for the other ranks."""
    return lambda: ranks.all_reduce(torch.ones(1, 1, device=device))
