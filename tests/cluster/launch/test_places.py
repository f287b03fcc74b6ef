"""Which node each worker runs on; nothing is started."""

from typing import Any

import pytest

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.launch.deployment import WorkerPlanner
from twinflow.cluster.launch.machine import Gpus, Machine, Node
from twinflow.cluster.launch.places import Floor, NoRoom, Place, place_workers
from twinflow.workers.config import WorkerConfig

GIB = 1 << 30
PLAIN = Machine(cores=8, free_memory=4 * GIB)
TWO_GPUS = Machine(8, 4 * GIB, Gpus(free_memory=(80 * GIB, 40 * GIB)))


def place(nodes: list[Node], **changes: Any) -> list[Place]:
    return place_workers(ServeConfig(**{"model": "m", **changes}), nodes)


def where(nodes: list[Node], **changes: Any) -> list[tuple[str, str]]:
    """Pool and node of each worker."""
    return [(one.role, one.node.host) for one in place(nodes, **changes)]


def test_workers_are_spread() -> None:
    nodes = [Node(PLAIN, "a"), Node(PLAIN, "b")]
    assert where(nodes, prefill=2, decode=2) == [
        ("prefill", "a"),
        ("prefill", "b"),
        ("decode", "a"),
        ("decode", "b"),
    ]


def test_ranks_of_a_worker_share_a_node_and_what_it_has() -> None:
    nodes = [Node(PLAIN, "a"), Node(PLAIN, "b")]
    large, small = place(nodes, prefill_tensor_parallel_size=4)
    assert (large.node.host, small.node.host) == ("a", "b")
    assert [share.threads for share in large.shares] == [2] * 4
    assert [share.threads for share in small.shares] == [8]


def test_a_node_takes_the_pools_that_it_declares() -> None:
    nodes = [Node(PLAIN, "a", {"decode": 2}), Node(PLAIN, "b", {"prefill": 1})]
    assert where(nodes, decode=2) == [("prefill", "b"), ("decode", "a"), ("decode", "a")]
    with pytest.raises(NoRoom, match="none of 2 nodes has room for a rank of pool prefill;"):
        place(nodes, prefill=2)
    with pytest.raises(NoRoom, match=r"4 ranks of pool decode; .* resource twinflow_decode"):
        place(nodes, decode_tensor_parallel_size=4)


def test_room_for_ranks_of_one_worker_is_on_one_node() -> None:
    halves = [Node(PLAIN, host, {"mixed": 1}) for host in "ab"]
    with pytest.raises(NoRoom, match="2 ranks of pool mixed"):
        place(halves, mixed=1, tensor_parallel_size=2)
    assert where([*halves, Node(PLAIN, "c", {"mixed": 2})], mixed=1, tensor_parallel_size=2) == [
        ("mixed", "c")
    ]


def test_every_rank_has_a_gpu_of_its_own_node() -> None:
    nodes = [Node(PLAIN, "head"), Node(TWO_GPUS, "a"), Node(TWO_GPUS, "b")]
    first, second = place(nodes, tensor_parallel_size=2)
    assert [(one.node.host, [s.gpu for s in one.shares]) for one in (first, second)] == [
        ("a", [0, 1]),
        ("b", [0, 1]),
    ]
    with pytest.raises(NoRoom, match="2 ranks of pool decode, with a GPU each"):
        place(nodes[:2], tensor_parallel_size=2)
    assert {host for _, host in where(nodes, device="cpu", prefill=2)} == {"head", "a", "b"}


def test_a_cluster_without_nodes_has_no_room() -> None:
    with pytest.raises(NoRoom, match="none of 0 nodes"):
        place([], device="cpu")


def test_a_worker_listens_where_others_reach_it() -> None:
    nodes = [Node(PLAIN, "10.0.0.2", {"prefill": 1}), Node(PLAIN, "10.0.0.3", {"decode": 1})]
    plans = WorkerPlanner(ServeConfig(model="m"), nodes, "t").first()
    specs = [spec for plan in plans for spec in plan.ranks]
    assert [WorkerConfig.decode(spec.config).host for spec in specs] == ["10.0.0.2", "10.0.0.3"]
    assert [(spec.node, spec.pool) for spec in specs] == [
        ("10.0.0.2", "prefill"),
        ("10.0.0.3", "decode"),
    ]
    (plan,) = WorkerPlanner(ServeConfig(model="m", mixed=1), [Node(PLAIN)], "t").first()
    assert [(spec.node, spec.pool) for spec in plan.ranks] == [("127.0.0.1", "")]


class TestFloor:
    """Workers that come later get what is free, as much as those of the beginning."""

    def floor(self, *nodes: Node, **changes: Any) -> Floor:
        config = ServeConfig(model="m", **changes)
        return Floor(config, nodes, place_workers(config, nodes))

    def test_gpus_that_nobody_has(self) -> None:
        four = Node(Machine(8, 1 << 30, Gpus((1 << 30,) * 4)))
        floor = self.floor(four)
        taken = list(floor.first)
        assert floor.room("decode", taken) == 2
        place = floor.find("decode", taken)
        assert place is not None
        assert [share.gpu for share in place.shares] == [2]
        assert place.shares[0].num_ranks == 2
        # The worker with the first GPU has gone.
        place = floor.find("decode", taken[1:])
        assert place is not None and place.shares[0].gpu == 0

    def test_all_gpus_are_taken(self) -> None:
        floor = self.floor(Node(Machine(8, 1 << 30, Gpus((1 << 30,) * 2))))
        assert floor.room("decode", floor.first) == 0
        assert floor.find("decode", floor.first) is None

    def test_on_a_cpu_memory_alone_decides(self) -> None:
        floor = self.floor(Node(PLAIN))
        assert floor.room("decode", floor.first) is None
        assert floor.find("decode", [*floor.first] * 9) is not None

    def test_room_that_nodes_declare(self) -> None:
        nodes = [
            Node(PLAIN, "10.0.0.1", {"prefill": 1, "decode": 2}),
            Node(PLAIN, "10.0.0.2", {"decode": 2}),
        ]
        floor = self.floor(*nodes)
        assert floor.room("prefill", floor.first) == 0
        assert floor.room("decode", floor.first) == 3
        place = floor.find("decode", [*floor.first])
        assert place is not None and place.role == "decode"
