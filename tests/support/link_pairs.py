"""Both ends of a link in one process, and what a process holds open."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from twinflow.parallel.links.config import LinkConfig, LinkPeer
from twinflow.parallel.links.link import Link
from twinflow.parallel.links.store import MemoryStore

PREFILL = LinkPeer("prefill-0", 3)
DECODE = LinkPeer("decode-0", 5)


@dataclass(frozen=True)
class Resources:
    """What a process holds open."""

    fds: int
    threads: int
    sockets: int


def resources() -> Resources:
    """What this process holds open now."""
    process = psutil.Process()
    return Resources(process.num_fds(), process.num_threads(), len(process.net_connections()))


def config_of(rank: Literal[0, 1], link_id: str = "link-1", deadline_s: float = 20.0) -> LinkConfig:
    """The sending end (rank 0, prefill) or the receiving end (rank 1, decode)."""
    return LinkConfig(link_id, rank, DECODE if rank == 0 else PREFILL, deadline_s=deadline_s)


def open_pair(link_id: str = "link-1", deadline_s: float = 20.0) -> tuple[Link, Link]:
    """A connected link: the sender's end and the receiver's end."""
    store = MemoryStore(link_id)
    with ThreadPoolExecutor(1) as other:
        receiver = other.submit(Link.open, config_of(1, link_id, deadline_s), store)
        sender = Link.open(config_of(0, link_id, deadline_s), store)
        return sender, receiver.result()


@contextmanager
def linked(deadline_s: float = 20.0) -> Iterator[tuple[Link, Link]]:
    """A connected link, closed at the end at both ends."""
    sender, receiver = open_pair(deadline_s=deadline_s)
    try:
        yield sender, receiver
    finally:
        sender.close()
        receiver.close()
        sender.check_integrity()
        receiver.check_integrity()


def filled(*values: float, size: int = 1000) -> list[torch.Tensor]:
    """One tensor per value, filled with it."""
    return [torch.full((size,), value) for value in values]
