"""A real process as one rank of a group, told what to do over its standard input.

`python -m tests.support.rank_peers STORE_PORT RANK SIZE DEADLINE_S` joins a group and then reads
lines `COUNT ELEMENTS`: so many sums of parts of so many elements. It answers each with `done`, or
with what went wrong, and then ends. `RankProcess` is the driving side.
"""

import sys

import torch
from tests.support.child_processes import ChildProcess
from tests.support.link_peers import PEER
from tests.support.link_store import RemoteStore
from tests.support.rank_groups import ranks_config

from twinflow.parallel.ranks.distributed import DistributedRanks
from twinflow.protos.errors import RankLost

GROUP = "ranks"


class RankProcess(ChildProcess):
    """Starts a rank and talks to it."""

    def __init__(self, store_port: int, rank: int, size: int, deadline_s: float) -> None:
        super().__init__("tests.support.rank_peers", store_port, rank, size, deadline_s)

    def begin(self, count: int, elements: int) -> None:
        """Let it add up `count` parts."""
        self.tell(f"{count} {elements}")


def _main(port: int, rank: int, size: int, deadline_s: float) -> None:
    config = ranks_config(rank, size, deadline_s=deadline_s, connect_s=60.0)
    ranks = DistributedRanks.connect(config, RemoteStore(port, GROUP, PEER))
    _say("connected")
    for line in sys.stdin:
        count, elements = map(int, line.split())
        try:
            for _ in range(count):
                ranks.all_reduce(torch.ones(1, elements))
        except RankLost as error:
            _say(str(error))
            return
        _say("done")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
