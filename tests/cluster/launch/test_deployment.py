"""Which processes a configuration means; nothing is started."""

from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from pydantic import SecretStr

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.gateway.config import GatewayConfig
from twinflow.cluster.launch.deployment import WorkerPlanner, new_token, plan_gateway
from twinflow.cluster.launch.machine import Gpus, Machine, Node
from twinflow.protos.errors import ConfigError
from twinflow.runtime.host_memory import MemoryShare
from twinflow.workers.config import WorkerConfig
from twinflow.workers.options import engine_options

GIB = 1 << 30
Device = Literal["auto", "cpu", "cuda"]
SMALL = Machine(cores=8, free_memory=4 * GIB)


def workers(machine: Machine = SMALL, **changes: Any) -> list[WorkerConfig]:
    """The workers of a configuration."""
    config = ServeConfig(**{"model": "models/tiny", **changes})
    plans = WorkerPlanner(config, [Node(machine)], "t").first()
    return [WorkerConfig.decode(spec.config) for plan in plans for spec in plan.ranks]


class TestPools:
    """Who there is."""

    def test_one_of_each_by_default(self) -> None:
        assert [(w.worker_id, w.role) for w in workers()] == [
            ("prefill-0", "prefill"),
            ("decode-0", "decode"),
        ]

    def test_several(self) -> None:
        names = [w.worker_id for w in workers(prefill=2, decode=1, mixed=2)]
        assert names == ["prefill-0", "prefill-1", "decode-0", "mixed-0", "mixed-1"]

    def test_a_plan_says_what_its_process_is(self) -> None:
        config = ServeConfig(model="m", mixed=1, log_level="debug")
        (plan,) = WorkerPlanner(config, [Node(SMALL)], "t").first()
        (spec,) = plan.ranks
        assert (plan.role, plan.name) == ("mixed", "mixed-0")
        assert (spec.kind, spec.name) == ("worker", "mixed-0")
        assert (spec.threads, spec.log_level) == (8, "debug")


class TestShares:
    """What each worker gets of the machine."""

    @pytest.mark.parametrize(
        ("cores", "pools", "threads"),
        [
            (8, {"prefill": 1, "decode": 1}, 4),
            (8, {"prefill": 1, "decode": 2}, 2),
            (2, {"mixed": 4}, 1),
        ],
    )
    def test_cores(self, cores: int, pools: dict[str, int], threads: int) -> None:
        found = workers(Machine(cores, GIB), **pools)
        assert {w.threads for w in found} == {threads}

    def test_lanes_of_different_workers_have_different_cores(self) -> None:
        found = workers(Machine(8, GIB), mixed=2, lanes="cores", lane_decisions="decisions")
        assert [(w.lanes, w.first_core, w.threads) for w in found] == [
            ("cores", 0, 4),
            ("cores", 4, 4),
        ]
        assert {w.lane_decisions for w in found} == {Path("decisions").resolve()}

    def test_certificates_are_where_the_operator_says_on_every_node(self, tmp_path: Path) -> None:
        (tmp_path / "current").symlink_to(tmp_path / "today")
        directory = tmp_path / "current"
        found = workers(prefill=1, decode=2, internal_tls=str(directory))
        assert {w.tls for w in found} == {directory}
        config = ServeConfig(model="m", internal_tls=str(directory))
        assert GatewayConfig.decode(plan_gateway(config, "token").config).tls == directory
        assert {w.tls for w in workers()} == {None}

    def test_decisions_of_each_engine_are_in_one_directory_wherever_it_runs(self) -> None:
        speculation = '{"method": "ngram", "adaptive_decisions": "decisions"}'
        found = workers(prefill=1, decode=2, speculative_config=speculation)
        folders = [w.speculative_config and w.speculative_config.adaptive_decisions for w in found]
        assert folders == [str(Path("decisions").resolve())] * 3
        assert len({engine_options(w).name for w in found}) == 3

    def test_lanes_need_a_mixed_worker(self) -> None:
        with pytest.raises(ValueError, match="there is no mixed worker: give --mixed N"):
            workers(lanes="cores")
        assert [w.lanes for w in workers(mixed=1)] == ["none"]

    def test_threads_as_configured(self) -> None:
        assert {w.threads for w in workers(threads_per_worker=3)} == {3}

    def test_kv_memory_is_a_part_of_what_is_free(self) -> None:
        found = workers(Machine(2, 4 * GIB), prefill=2, decode=2)
        total = sum(w.kv_cache_memory for w in found)
        assert 0.3 * 4 * GIB < total <= 0.5 * 4 * GIB

    def test_kv_memory_ends_where_it_is_enough(self) -> None:
        assert {w.kv_cache_memory for w in workers(Machine(2, 1000 * GIB))} == {GIB}

    def test_host_memory_is_cut_up_before_anybody_takes_any(self) -> None:
        found = workers(Machine(2, 4 * GIB), prefill=2, decode=1)
        assert {w.host_memory for w in found} == {MemoryShare(4 * GIB, parts=3)}

    def test_kv_memory_as_configured(self) -> None:
        assert {w.kv_cache_memory for w in workers(kv_cache_memory="5GiB")} == {5 * GIB}


class TestDevices:
    """What the workers compute on."""

    TWO = Machine(8, 4 * GIB, Gpus(free_memory=(80 * GIB, 40 * GIB)))
    NONE = Machine(8, 4 * GIB, Gpus(problem="torch 2.13.0+cpu is built without CUDA"))

    @pytest.mark.parametrize("device", ["auto", "cuda"])
    def test_a_gpu_for_each(self, device: Device) -> None:
        plans = WorkerPlanner(ServeConfig(model="m", device=device), [Node(self.TWO)], "t").first()
        specs = [spec for plan in plans for spec in plan.ranks]
        configs = [WorkerConfig.decode(spec.config) for spec in specs]
        assert [spec.gpu for spec in specs] == [0, 1]
        assert [config.device for config in configs] == ["cuda:0", "cuda:0"]
        shares = [config.kv_cache_memory / GIB for config in configs]
        assert shares == pytest.approx([32.0, 16.0])

    @pytest.mark.parametrize(("device", "machine"), [("cpu", TWO), ("auto", NONE)])
    def test_the_cpu(self, device: Device, machine: Machine) -> None:
        plans = WorkerPlanner(ServeConfig(model="m", device=device), [Node(machine)], "t").first()
        assert [spec.gpu for plan in plans for spec in plan.ranks] == [None, None]
        assert {w.device for w in workers(machine, device=device)} == {"cpu"}

    def test_why_there_is_no_gpu(self) -> None:
        with pytest.raises(ConfigError, match=r"^--device cuda: torch .* is built without CUDA; "):
            workers(self.NONE, device="cuda")

    @pytest.mark.parametrize("device", ["auto", "cuda"])
    def test_too_few_gpus(self, device: str) -> None:
        with pytest.raises(
            ConfigError, match=f"^--device {device}: 3 workers need a GPU each and torch sees 2; "
        ):
            workers(self.TWO, device=device, prefill=2)

    def test_too_few_gpus_for_the_ranks(self) -> None:
        message = "2 workers of 6 ranks together need a GPU each and torch sees 2"
        with pytest.raises(ConfigError, match=message):
            workers(self.TWO, tensor_parallel_size=4, decode_tensor_parallel_size=2)

    def test_a_gpu_for_each_rank(self) -> None:
        config = ServeConfig(model="m", mixed=1, tensor_parallel_size=2, device="cuda")
        (plan,) = WorkerPlanner(config, [Node(self.TWO)], "t").first()
        assert [spec.gpu for spec in plan.ranks] == [0, 1]
        assert {WorkerConfig.decode(spec.config).device for spec in plan.ranks} == {"cuda:0"}


class TestRanks:
    """Workers of several processes."""

    def test_ranks_differ_in_nothing_but_their_number_and_cores(self) -> None:
        config = ServeConfig(model="m", mixed=2, tensor_parallel_size=2)
        plans = WorkerPlanner(config, [Node(SMALL)], "t").first()
        names = [[spec.name for spec in plan.ranks] for plan in plans]
        assert names == [["mixed-0", "mixed-0-rank1"], ["mixed-1", "mixed-1-rank1"]]
        addresses = set()
        for plan in plans:
            first, second = (WorkerConfig.decode(spec.config) for spec in plan.ranks)
            assert (first.worker_id, first.rank, first.tensor_parallel_size) == (plan.name, 0, 2)
            cores = first.first_core + (first.threads or 0)
            assert second == msgspec.structs.replace(first, rank=1, first_core=cores)
            addresses.add(first.leader_address)
        assert len(addresses) == 2 and "" not in addresses

    def test_every_pool_has_its_own_number_and_the_kv_is_cut_for_the_largest(self) -> None:
        found = workers(
            mixed=1,
            prefill=1,
            decode=1,
            tensor_parallel_size=2,
            prefill_tensor_parallel_size=4,
            decode_tensor_parallel_size=1,
        )
        sizes = {w.role: w.tensor_parallel_size for w in found}
        assert sizes == {"prefill": 4, "decode": 1, "mixed": 2}
        assert len(found) == 7
        assert {w.kv_parts for w in found} == {4}
        assert {w.leader_address != "" for w in found if w.role == "decode"} == {False}

    def test_every_rank_has_an_equal_share_of_the_machine(self) -> None:
        found = workers(tensor_parallel_size=2)
        assert {w.threads for w in found} == {2}
        assert {w.host_memory for w in found} == {MemoryShare(4 * GIB, parts=4)}
        assert sum(w.kv_cache_memory for w in found) == pytest.approx(0.4 * 4 * GIB, abs=4)

    def test_experts_are_cut_or_dealt_out(self) -> None:
        assert {w.expert_parallel for w in workers(enable_expert_parallel=True)} == {True}
        assert {w.expert_parallel for w in workers()} == {False}


def test_every_pool_may_have_policies_of_its_own() -> None:
    assert {w.scheduler for w in workers()} == {"auto"}
    found = workers(
        prefill=1,
        decode=1,
        mixed=1,
        prefill_scheduler="laps",
        scheduler="chunked",
        prefill_prefill_order="spf",
        decode_admission="past-future",
    )
    assert [w.scheduler for w in found] == ["laps", "chunked", "chunked"]
    assert [w.prefill_order for w in found] == ["spf", "fcfs", "fcfs"]
    assert [w.admission for w in found] == ["aggressive", "past-future", "aggressive"]


def test_what_the_operator_chose_reaches_every_worker() -> None:
    found = workers(
        dtype="bfloat16",
        max_model_len=1000,
        max_num_seqs=5,
        max_num_batched_tokens=50,
        block_size=32,
        num_kv_blocks=77,
        enable_prefix_caching=False,
        prefill_order="spf",
        admission="past-future",
        tbt_objective_ms=50,
        ttft_objective_ms=1500,
        kv_transfer_timeout=2.5,
    )
    for epoch, worker in enumerate(found, 1):
        assert worker.model == Path("models/tiny").resolve()
        assert worker.dtype == "bfloat16"
        assert (worker.prefill_order, worker.admission) == ("spf", "past-future")
        assert (worker.tbt_objective, worker.ttft_objective) == (0.05, 1.5)
        assert (worker.max_model_len, worker.max_num_seqs) == (1000, 5)
        assert (worker.max_num_batched_tokens, worker.block_size) == (50, 32)
        assert (worker.num_kv_blocks, worker.enable_prefix_caching) == (77, False)
        assert worker.kv_transfer_timeout_s == 2.5
        assert (worker.epoch, worker.token, worker.host) == (epoch, "t", "127.0.0.1")


def test_the_gateway() -> None:
    config = ServeConfig(
        model="models/tiny",
        served_model_name=("a", "b"),
        host="127.0.0.2",
        port=1,
        grpc_port=2,
        max_model_len=1000,
        api_key=(SecretStr("key"),),
        max_num_queued_reqs=3,
        max_num_queued_tokens=4,
        max_key_queued_reqs=6,
        max_key_queued_tokens=7,
        fair_tokens=8,
        seed=5,
    )
    spec = plan_gateway(config, "t")
    gateway = GatewayConfig.decode(spec.config)
    assert (spec.kind, spec.name, spec.threads) == ("gateway", "gateway-0", 1)
    assert gateway == GatewayConfig(
        model=Path("models/tiny").resolve(),
        names=("a", "b"),
        token="t",
        max_model_len=1000,
        host="127.0.0.2",
        port=1,
        grpc_port=2,
        api_keys=("key",),
        max_queued_requests=3,
        max_key_queued_requests=6,
        max_key_queued_tokens=7,
        fair_tokens=8,
        max_queued_tokens=4,
        seed=5,
    )


def test_every_deployment_has_a_secret_of_its_own() -> None:
    tokens = {new_token() for _ in range(10)}
    assert len(tokens) == 10
    assert {len(token) for token in tokens} == {64}
