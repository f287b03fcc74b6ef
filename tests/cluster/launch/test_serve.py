"""Starting, watching and stopping a deployment of services that are no processes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.calibrations import measured_model, tiny_latent_config
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_gateway import FakeGateway
from tests.support.fake_launcher import FakeHandle, FakeLauncher, RecordingUI, fails_with

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.launch.base import ServiceStatus
from twinflow.cluster.launch.machine import Machine, Node
from twinflow.cluster.launch.serve import (
    READY_TIMEOUT_S,
    START_TIMEOUT_S,
    Deployment,
    Interrupted,
)
from twinflow.protos.errors import (
    CheckpointError,
    ConfigError,
    DeadlineExceeded,
    EngineError,
    ServerError,
    TwinflowError,
)
from twinflow.protos.twinflow.internal.v1 import gateway_pb2
from twinflow.protos.twinflow.v1 import admin_pb2 as pb

NODES = [Node(Machine(cores=4, free_memory=1 << 30))]


class Stage:
    """A deployment, and what surrounds it.

    Attributes:
        missing: what `/ready` says is missing, one answer after the other; at the end nothing is.
        interrupts: orders to stop so far.
        checked: nodes that the model was checked to fit on.
    """

    def __init__(
        self, prepare: Callable[[FakeHandle], None] = lambda handle: None, **changes: Any
    ) -> None:
        self.launcher = FakeLauncher(prepare=prepare)
        self.clock = self.launcher.clock
        self.ui = RecordingUI()
        self.gateway = FakeGateway()
        self.missing: list[str] = []
        self.interrupts = 0
        self.checked: list[Sequence[Node]] = []
        self.deployment = Deployment(
            ServeConfig(**{"model": "models/tiny", "launcher": "local", **changes}),
            self.launcher,
            self.ui,
            lambda: self.interrupts,
            check=self.checked.append,
            readiness=lambda address: self.missing.pop(0) if self.missing else "",
            connect=lambda address, token: self.gateway,
            sleep=self.clock.advance,
            clock=self.clock,
        )

    def interrupt(self) -> None:
        self.interrupts += 1


def only(name: str, change: Callable[[FakeHandle], None]) -> Callable[[FakeHandle], None]:
    """Change one service only."""
    return lambda handle: change(handle) if handle.name == name else None


def gone(name: str) -> ServiceStatus:
    """A process that has ended."""
    return ServiceStatus("gone", f"the process of {name} ended")


class TestRoom:
    """The nodes of a cluster come when they come."""

    ROOMY = Node(Machine(4, 1 << 30), "10.0.0.2")
    PREFILL = Node(Machine(4, 1 << 30), "10.0.0.2", {"prefill": 1})
    DECODE = Node(Machine(4, 1 << 30), "10.0.0.3", {"decode": 1})

    def test_nodes_are_waited_for(self) -> None:
        stage = Stage(launcher="ray", address="auto")
        stage.launcher.machines = [self.PREFILL]
        stage.clock.at = [(30.0, lambda: stage.launcher.machines.append(self.DECODE))]
        assert stage.deployment.find_room() == [self.PREFILL, self.DECODE]
        assert stage.ui.phases == ["Waiting for nodes"]
        assert 30.0 <= stage.clock.now < 31.0

    def test_but_not_for_ever(self) -> None:
        stage = Stage(launcher="ray", address="auto")
        stage.launcher.machines = [self.PREFILL]
        with pytest.raises(DeadlineExceeded, match=r"room in the Ray cluster: .*twinflow_decode"):
            stage.deployment.find_room()

    def test_an_order_to_stop_ends_the_wait(self) -> None:
        stage = Stage(launcher="ray", address="auto")
        stage.launcher.machines = []
        stage.clock.at = [(5.0, stage.interrupt)]
        assert stage.deployment.run() == 0
        assert (stage.launcher.opened, stage.launcher.closed) == (0, 1)

    def test_the_model_is_checked_against_what_was_found(self) -> None:
        stage = Stage(launcher="ray", address="auto")
        stage.launcher.machines = [self.ROOMY]
        stage.clock.at = [(100.0, stage.interrupt)]
        assert stage.deployment.run() == 0
        assert stage.checked == [[self.ROOMY]]

    def test_this_machine_gets_no_more_room(self) -> None:
        stage = Stage(device="cuda")
        with pytest.raises(ConfigError, match="--device cuda: "):
            stage.deployment.find_room()
        assert stage.clock.now == 0.0


class TestStart:
    """From nothing to a token through every pair."""

    def test_gateway_and_workers_then_proof(self) -> None:
        stage = Stage(prefill=1, decode=2, api_key=("key",), served_model_name=("tiny",))
        stage.missing = ["prefill-0→decode-0: not connected yet"]
        summary = stage.deployment.start(NODES)
        names = [handle.name for handle in stage.launcher.handles]
        assert names == ["gateway-0", "prefill-0", "decode-0", "decode-1"]
        workers = {
            "prefill-0": "127.0.0.1:5001",
            "decode-0": "127.0.0.1:5002",
            "decode-1": "127.0.0.1:5003",
        }
        table = stage.gateway.table
        assert {name: duty.address for name, duty in table.items()} == workers
        assert [duty.epoch for duty in table.values()] == [1, 2, 3]
        assert summary.http_url == "http://127.0.0.1:8000"
        assert summary.grpc_target == "127.0.0.1:50051"
        assert summary.pools == {"prefill": ("prefill-0",), "decode": ("decode-0", "decode-1")}
        assert (summary.model, summary.needs_key) == ("tiny", True)
        assert stage.ui.phases == ["Starting", "Starting gateway and workers", "Checking"]
        assert (120, 400) in stage.ui.amounts

    def test_nothing_starts_on_a_machine_that_lacks_what_is_wanted(self) -> None:
        stage = Stage(device="cuda")
        with pytest.raises(ConfigError, match="--device cuda: "):
            stage.deployment.start(NODES)
        assert (stage.launcher.opened, stage.ui.phases) == (0, [])

    def test_a_measured_loss_is_said_before_anything_starts(self, tmp_path: Path) -> None:
        model = measured_model(write_checkpoint(tmp_path, tiny_latent_config()))
        stage = Stage(model=str(model), mla_parallel="tpla", mla_shards=2, tpla_transform="joint+4")
        stage.deployment.start(NODES)
        assert "Warning: tpla approximates attention: joint+4" in stage.ui.messages[0]
        loss = stage.launcher.config_of("gateway-0")["loss"]
        assert isinstance(loss, dict) and loss["transform"] == "joint+4"
        assert stage.launcher.config_of("decode-0")["mla_shards"] == 2
        unmeasured = Stage(
            model=str(model), mla_parallel="tpla", mla_shards=4, tpla_transform="joint+4"
        )
        with pytest.raises(ConfigError, match="was not measured with 4 shards"):
            unmeasured.deployment.start(NODES)
        assert unmeasured.launcher.opened == 0

    def test_the_gateway_meets_the_workers_when_all_are_there(self) -> None:
        def hang(handle: FakeHandle) -> None:
            handle.steps = [ServiceStatus("starting", "loading weights", 1, 2)]

        stage = Stage(only("decode-0", hang))
        with pytest.raises(DeadlineExceeded):
            stage.deployment.start(NODES)
        assert stage.gateway.requests == []

    def test_a_taken_port_is_found_while_workers_load(self) -> None:
        def never(handle: FakeHandle) -> None:
            if handle.spec.kind == "worker":
                handle.steps = [ServiceStatus("starting", "loading weights", 1, 2)]
            else:
                handle.steps = list(fails_with("cannot listen on 127.0.0.1:8000", "config_error"))

        stage = Stage(never)
        with pytest.raises(ConfigError, match="gateway-0: cannot listen"):
            stage.deployment.start(NODES)
        assert stage.clock.now < 1.0

    def test_workers_that_the_gateway_cannot_work_with(self) -> None:
        stage = Stage()
        stage.missing = ["the server is starting"] * 10_000
        failed = list(fails_with("they lay KV blocks out differently", "config_error"))[1:]
        stage.clock.at = [
            (5.0, lambda: setattr(stage.launcher.named("gateway-0"), "steps", failed))
        ]
        with pytest.raises(ConfigError, match="gateway-0: they lay KV blocks out differently"):
            stage.deployment.start(NODES)
        assert stage.clock.now < 6.0

    def test_all_processes_of_a_deployment_share_a_secret(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        tokens = {
            stage.launcher.config_of(handle.name)["token"] for handle in stage.launcher.handles
        }
        assert len(tokens) == 1 and tokens != {""}

    @pytest.mark.parametrize(
        ("detail", "code", "error"),
        [
            ("weights are missing", "checkpoint_error", CheckpointError),
            ("--dtype int8: use auto", "config_error", ConfigError),
            ("KeyError: 'x'", "", ServerError),
            ("out of memory", "internal_error", ServerError),
        ],
    )
    def test_a_service_that_says_why_it_fails(
        self, detail: str, code: str, error: type[TwinflowError]
    ) -> None:
        def fail(handle: FakeHandle) -> None:
            handle.steps = list(fails_with(detail, code))

        stage = Stage(only("decode-0", fail))
        with pytest.raises(error, match=f"decode-0: {detail}"):
            stage.deployment.start(NODES)

    def test_a_process_that_is_gone(self) -> None:
        def die(handle: FakeHandle) -> None:
            handle.steps = [ServiceStatus("gone", "the process of decode-0 ended with status -9")]

        stage = Stage(only("decode-0", die))
        with pytest.raises(ServerError, match=r"^the process of decode-0 ended with status -9$"):
            stage.deployment.start(NODES)

    def test_the_rank_that_failed_first_is_named(self) -> None:
        def fail(handle: FakeHandle) -> None:
            if handle.name == "mixed-0":
                handle.steps = list(fails_with("rank 1 of mixed-0 could not start", "rank_lost"))
            if handle.name == "mixed-0-rank1":
                handle.steps = list(fails_with("out of memory", "config_error"))

        stage = Stage(fail, mixed=1, tensor_parallel_size=2)
        with pytest.raises(ConfigError, match=r"^mixed-0-rank1: out of memory$"):
            stage.deployment.start(NODES)

    def test_a_service_that_never_gets_ready(self) -> None:
        def hang(handle: FakeHandle) -> None:
            handle.steps = [ServiceStatus("starting", "loading weights", 1, 2)]

        stage = Stage(only("prefill-0", hang))
        with pytest.raises(
            DeadlineExceeded, match="waiting for prefill-0 to start: loading weights"
        ):
            stage.deployment.start(NODES)
        assert stage.clock.now == pytest.approx(START_TIMEOUT_S, abs=1.0)

    def test_a_pair_that_never_works(self) -> None:
        stage = Stage()
        stage.missing = ["prefill-0→decode-0: no link"] * 10_000
        with pytest.raises(DeadlineExceeded, match=r"every prefill and decode pair: .*: no link"):
            stage.deployment.start(NODES)
        assert stage.clock.now == pytest.approx(READY_TIMEOUT_S, abs=2.0)

    def test_a_gateway_that_dies_while_it_is_asked(self) -> None:
        stage = Stage()
        stage.missing = ["connection refused"] * 10_000
        gone = [ServiceStatus("gone", "the process of gateway-0 ended with status 1")]
        stage.clock.at = [(5.0, lambda: setattr(stage.launcher.named("gateway-0"), "steps", gone))]
        with pytest.raises(ServerError, match="gateway-0 ended"):
            stage.deployment.start(NODES)
        assert stage.clock.now < 6.0

    @pytest.mark.parametrize("when", [0.1, 0.5])
    def test_an_order_to_stop(self, when: float) -> None:
        stage = Stage()
        stage.missing = ["not yet"] * 10_000
        stage.clock.at = [(when, stage.interrupt)]
        with pytest.raises(Interrupted):
            stage.deployment.start(NODES)


class TestWatch:
    """While it serves."""

    def test_until_an_order_to_stop(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        stage.clock.at = [(100.0, stage.interrupt)]
        stage.deployment.watch()
        assert stage.clock.now >= 100.0

    def test_until_the_gateway_dies(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        gone = [ServiceStatus("gone", "the process of gateway-0 ended")]
        stage.clock.at = [(50.0, lambda: setattr(stage.launcher.named("gateway-0"), "steps", gone))]
        with pytest.raises(ServerError, match="the process of gateway-0 ended"):
            stage.deployment.watch()

    @pytest.mark.parametrize("dead", ["decode-0", "prefill-0"])
    def test_a_dead_worker_is_reported_once_and_replaced(self, dead: str) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        stage.clock.at = [
            (50.0, lambda: setattr(stage.launcher.named(dead), "steps", [gone(dead)])),
            (100.0, stage.interrupt),
        ]
        stage.deployment.watch()
        assert stage.clock.now >= 100.0
        assert stage.ui.messages == [
            f"{dead} is lost: the process of {dead} ended",
            f"{dead} starts",
            f"{dead} serves as {dead.partition('-')[0]} worker",
            "everything is as wanted",
        ]
        assert stage.launcher.released == [dead]
        assert stage.launcher.config_of(dead)["epoch"] == 3
        assert stage.gateway.table[dead].epoch == 3

    def test_processes_stand_by_only_once_everything_is_as_wanted(self) -> None:
        def slow(handle: FakeHandle) -> None:
            if len(stage.launcher.handles) >= 3:
                handle.steps = [ServiceStatus("starting", "loading weights")]

        stage = Stage(slow)
        rests: list[int] = []
        stage.deployment.start(NODES)
        stage.clock.at = [
            (50.0, lambda: setattr(stage.launcher.named("decode-0"), "steps", [gone("decode-0")])),
            (55.0, lambda: rests.append(stage.launcher.rests)),
            (80.0, stage.interrupt),
        ]
        stage.deployment.watch()
        assert rests[0] == stage.launcher.rests > 0

    @pytest.mark.parametrize("lost", ["mixed-0", "mixed-0-rank1"])
    def test_a_rank_that_dies_takes_its_worker_along(self, lost: str) -> None:
        stage = Stage(mixed=2, tensor_parallel_size=2)
        summary = stage.deployment.start(NODES)
        assert (summary.pools, summary.ranks) == ({"mixed": ("mixed-0", "mixed-1")}, {"mixed": 2})
        stage.clock.at = [
            (50.0, lambda: setattr(stage.launcher.named(lost), "steps", [gone(lost)])),
            (100.0, stage.interrupt),
        ]
        stage.deployment.watch()
        assert stage.ui.messages[0] == f"mixed-0 is lost: the process of {lost} ended"
        assert stage.launcher.released == ["mixed-0", "mixed-0-rank1"]
        alive = [handle.name for handle in stage.launcher.handles if handle.alive]
        assert alive == ["gateway-0", "mixed-1", "mixed-1-rank1", "mixed-0", "mixed-0-rank1"]
        addresses = {stage.launcher.config_of(name)["leader_address"] for name in alive[-2:]}
        assert len(addresses) == 1

    def test_a_frozen_rank_is_killed_with_its_worker(self) -> None:
        stage = Stage(mixed=2, tensor_parallel_size=2)
        stage.deployment.start(NODES)
        frozen = stage.launcher.named("mixed-0-rank1")
        lost = list(fails_with("rank 1 of mixed-0 is lost: it said nothing for 4 s", "worker_lost"))
        stage.clock.at = [
            (50.0, lambda: setattr(stage.launcher.named("mixed-0"), "steps", lost[1:])),
            (100.0, stage.interrupt),
        ]
        stage.deployment.watch()
        assert not frozen.alive
        assert stage.ui.messages[0].startswith("mixed-0 is lost: mixed-0: rank 1 of mixed-0 is")

    def test_until_the_last_worker_dies_and_none_starts(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)

        def fail(handle: FakeHandle) -> None:
            handle.steps = list(fails_with("the model is gone", "checkpoint_error"))

        stage.launcher.prepare = fail
        for name in ("decode-0", "prefill-0"):
            stage.launcher.named(name).steps = [gone(name)]
        with pytest.raises(ServerError, match="the model is gone"):
            stage.deployment.watch()

    def test_an_operator_s_change(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        request = pb.ScalePoolRequest(request_id="r", pool=pb.WORKER_ROLE_DECODE, size=2)
        stage.gateway.commands.append(gateway_pb2.Command(scale=request))
        stage.clock.at = [(100.0, stage.interrupt)]
        stage.deployment.watch()
        assert stage.gateway.table["decode-1"].address == "127.0.0.1:5003"
        assert (
            stage.launcher.config_of("decode-1")["token"]
            == (stage.launcher.config_of("decode-0")["token"])
        )
        stage.deployment.stop(1.0)
        assert not any(handle.alive for handle in stage.launcher.handles)
        assert stage.gateway.closed == 1


class TestStop:
    """Taking it down."""

    def test_the_gateway_first(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        stage.launcher.named("gateway-0").stop_takes_s = 5.0
        stopped: list[tuple[str, float]] = []
        for handle in stage.launcher.handles:
            handle.on_stop = self._noting(stage, handle, stopped)
        began = stage.clock.now
        stage.deployment.stop(30.0)
        assert [name for name, _ in stopped] == ["gateway-0", "prefill-0", "decode-0"]
        assert stopped[0][1] == began
        assert stopped[1][1] >= began + 4.8
        assert [handle.stopped_with for handle in stage.launcher.handles] == [[30.0]] * 3
        assert not any(handle.alive for handle in stage.launcher.handles)
        assert stage.ui.messages == []

    @staticmethod
    def _noting(
        stage: Stage, handle: FakeHandle, stopped: list[tuple[str, float]]
    ) -> Callable[[], None]:
        return lambda: stopped.append((handle.name, stage.clock.now))

    def test_what_does_not_stop_is_killed(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        stage.launcher.named("decode-0").stop_takes_s = None
        stage.deployment.stop(2.0)
        assert stage.ui.messages == ["Killing decode-0"]
        assert not any(handle.alive for handle in stage.launcher.handles)
        assert 2.0 < stage.clock.now < 40.0

    def test_a_second_order_leaves_the_gateway_time_to_end_its_streams(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        gateway, *_ = handles = [
            stage.launcher.named(name) for name in ("gateway-0", "prefill-0", "decode-0")
        ]
        gateway.stop_takes_s = 500.0
        stage.interrupts = 1
        hurried_at = stage.clock.now + 100.0

        def hurry() -> None:
            stage.interrupt()
            gateway.stop_takes_s = 1.5

        stage.clock.at = [(hurried_at, hurry)]
        stage.deployment.stop(1000.0)
        assert [handle.stopped_with for handle in handles] == [[1000.0, 0.0], [0.0], [0.0]]
        assert (stage.ui.phases[-1], stage.ui.messages) == ("Stopping at once", [])
        assert hurried_at + 1.4 < stage.clock.now < hurried_at + 4.0

    def test_two_orders_in_a_row_are_a_hurry_from_the_start(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        stage.interrupts = 2
        stage.deployment.stop(1000.0)
        assert [handle.stopped_with for handle in stage.launcher.handles] == [[0.0]] * 3
        assert stage.ui.messages == []

    def test_in_a_hurry_nobody_is_waited_for_long(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        for handle in stage.launcher.handles:
            handle.stop_takes_s = None
        stage.interrupts = 2
        began = stage.clock.now
        stage.deployment.stop(1000.0)
        assert stage.ui.messages == ["Killing gateway-0", "Killing prefill-0, decode-0"]
        assert began + 10.0 < stage.clock.now < began + 11.0  # once each of them

    def test_a_third_order_kills(self) -> None:
        stage = Stage()
        stage.deployment.start(NODES)
        for handle in stage.launcher.handles:
            handle.stop_takes_s = None
        stage.interrupts = 3
        began = stage.clock.now
        stage.deployment.stop(1000.0)
        assert not any(handle.alive for handle in stage.launcher.handles)
        assert stage.clock.now < began + 1.0

    def test_before_anything_was_started(self) -> None:
        Stage().deployment.stop(1.0)


class TestRun:
    """The whole life: its exit status, and that nothing is left."""

    def run(self, stage: Stage) -> int:
        try:
            return stage.deployment.run()
        finally:
            assert not any(handle.alive for handle in stage.launcher.handles)
            assert stage.launcher.opened == stage.launcher.closed == 1

    def test_until_an_order_to_stop(self) -> None:
        stage = Stage(shutdown_timeout=7)
        stage.clock.at = [(100.0, stage.interrupt)]
        assert self.run(stage) == 0
        assert len(stage.ui.summaries) == 1
        assert (stage.ui.phases[-1], stage.ui.messages) == ("Stopping", ["Stopped."])
        assert [handle.stopped_with for handle in stage.launcher.handles] == [[7.0]] * 3

    def test_a_hurried_stop_has_a_status_of_its_own(self) -> None:
        stage = Stage()
        stage.clock.at = [(100.0, stage.interrupt), (100.0, stage.interrupt)]
        assert self.run(stage) == 130

    def test_an_order_to_stop_while_it_starts(self) -> None:
        stage = Stage()
        stage.clock.at = [(0.1, stage.interrupt)]
        assert self.run(stage) == 0
        assert stage.ui.summaries == []
        assert [handle.stopped_with for handle in stage.launcher.handles] == [[], [], []]

    def test_a_process_that_dies(self) -> None:
        stage = Stage()
        gone = [ServiceStatus("gone", "the process of gateway-0 ended")]
        stage.clock.at = [(50.0, lambda: setattr(stage.launcher.named("gateway-0"), "steps", gone))]
        assert self.run(stage) == 1
        assert stage.ui.messages == ["Stopping, because the process of gateway-0 ended"]
        assert [handle.stopped_with for handle in stage.launcher.handles] == [[0.0]] * 3

    @pytest.mark.parametrize("error", [EngineError("x"), TwinflowError("x")])
    def test_any_error_of_ours_is_an_exit_status(self, error: TwinflowError) -> None:
        def fail(handle: FakeHandle) -> None:
            handle.steps = list(fails_with("broken", error.code))

        stage = Stage(only("prefill-0", fail))
        assert self.run(stage) == 1
        assert stage.ui.messages == ["Stopping, because prefill-0: broken"]

    def test_a_mistake_of_the_operator_is_raised(self) -> None:
        def fail(handle: FakeHandle) -> None:
            handle.steps = list(fails_with("no such model", "checkpoint_error"))

        with pytest.raises(CheckpointError, match="prefill-0: no such model"):
            self.run(Stage(only("prefill-0", fail)))

    def test_a_launcher_that_does_not_open_is_closed(self) -> None:
        stage = Stage()
        stage.launcher.problem = ServerError("Ray does not start")
        assert self.run(stage) == 1
        assert stage.ui.messages == ["Stopping, because Ray does not start"]
