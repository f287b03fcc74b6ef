"""The controller over processes and a gateway that exist in the test only."""

import pytest
from tests.support.cluster_model import serving
from tests.support.engines import ManualClock
from tests.support.fake_fleet import FakeFleet
from tests.support.fake_gateway import FakeGateway

from twinflow.cluster.controller.chronicle import Chronicle
from twinflow.cluster.controller.controller import Controller, ControllerConfig
from twinflow.cluster.controller.fleet import Sighting
from twinflow.cluster.controller.plan import GIVE_UP_AFTER
from twinflow.protos.errors import (
    CheckpointError,
    ConfigError,
    DeadlineExceeded,
    ServerError,
    Unavailable,
)
from twinflow.protos.twinflow.internal.v1 import gateway_pb2, worker_pb2
from twinflow.protos.twinflow.v1 import admin_pb2 as pb


class Stage:
    """A controller and what surrounds it."""

    def __init__(self, **sizes: int) -> None:
        self.clock = ManualClock()
        self.fleet = FakeFleet()
        self.gateway = FakeGateway()
        self.reported: list[str] = []
        state, desired = serving(**sizes)
        for name in state.workers:
            self.fleet.sightings[name] = Sighting("ready", "a")
        self.controller = Controller(
            state,
            desired,
            self.fleet,
            self.gateway,
            config=ControllerConfig(ranks={"prefill": 1, "decode": 2}),
            chronicle=Chronicle(lambda: 1000.0, self.reported.append),
            clock=self.clock,
        )
        self.controller.introduce()

    def tick(self, times: int = 1, seconds: float = 0.2) -> None:
        for _ in range(times):
            self.clock.advance(seconds)
            self.controller.tick()

    def ready(self, worker_id: str) -> None:
        self.fleet.sightings[worker_id] = Sighting("ready", f"address of {worker_id}")

    def gone(self, worker_id: str, why: str = "the process ended") -> None:
        self.fleet.sightings[worker_id] = Sighting("gone", detail=why)

    def scale(self, pool: pb.WorkerRole, size: int, request_id: str = "r1", **fields: int) -> None:
        request = pb.ScalePoolRequest(request_id=request_id, pool=pool, size=size, **fields)  # type: ignore[arg-type]
        self.gateway.commands.append(gateway_pb2.Command(scale=request))

    @property
    def cluster(self) -> pb.Cluster:
        """As operators saw it last."""
        return self.gateway.requests[-1].cluster


def test_a_pool_grows() -> None:
    stage = Stage(prefill=1, decode=1)
    stage.scale(pb.WORKER_ROLE_DECODE, 2)
    stage.tick()
    assert stage.fleet.log == ["start decode-1 3"]
    stage.tick()
    assert not stage.gateway.outcomes["r1"].HasField("failure")
    assert stage.gateway.requests[-1].missing == ["1 decode worker is missing: being started"]
    info = {worker.worker_id: worker for worker in stage.cluster.workers}["decode-1"]
    assert (info.phase, info.detail, info.ranks) == (
        pb.WORKER_PHASE_STARTING,
        "loading weights",
        2,
    )
    assert "decode-1" not in stage.gateway.table
    assert stage.cluster.settled_version < stage.cluster.version
    stage.ready("decode-1")
    stage.tick(2)
    duty = stage.gateway.table["decode-1"]
    assert (duty.epoch, duty.address) == (3, "address of decode-1")
    assert duty.role == worker_pb2.ROLE_DECODE
    assert stage.cluster.settled_version == stage.cluster.version == 2
    assert stage.gateway.told == [
        "wanted: decode pool of 2 (drain: finish)",
        "decode-1 starts",
        "decode-1 serves as decode worker",
        "everything is as wanted",
    ]
    assert [event.number for event in stage.gateway.events] == [1, 2, 3, 4]
    assert stage.reported == stage.gateway.told


def test_a_pool_shrinks_once_the_gateway_knows() -> None:
    stage = Stage(prefill=1, decode=2)
    stage.scale(pb.WORKER_ROLE_DECODE, 1, drain=pb.DRAIN_MODE_MIGRATE)
    stage.tick()
    assert stage.fleet.log == []
    stage.tick()
    duty = stage.gateway.table["decode-1"]
    assert (duty.leaving, duty.moving) == (True, True)
    assert stage.fleet.log == ["stop decode-1 35"]
    stage.tick()
    assert stage.gateway.table["decode-1"].leaving
    stage.gone("decode-1", "it was stopped")
    stage.tick(2)
    assert "decode-1" not in stage.gateway.table
    assert stage.fleet.log[-1] == "kill decode-1"
    assert stage.gateway.told[-2:] == ["decode-1 has ended", "everything is as wanted"]


def test_a_flip_is_a_matter_of_the_table() -> None:
    stage = Stage(prefill=2, decode=1)
    flip = pb.FlipWorkerRequest(request_id="f", worker_id="prefill-1", role=pb.WORKER_ROLE_DECODE)
    stage.gateway.commands.append(gateway_pb2.Command(flip=flip))
    version = stage.gateway.requests[-1].table_version
    stage.tick(2)
    assert stage.gateway.table["prefill-1"].role == worker_pb2.ROLE_DECODE
    assert stage.gateway.requests[-1].table_version == version + 1
    assert stage.fleet.log == []


def test_a_change_that_comes_twice_is_made_once() -> None:
    stage = Stage(prefill=1, decode=1)
    drain = pb.DrainWorkerRequest(request_id="d", worker_id="decode-0", replace=True)
    stage.gateway.commands += [gateway_pb2.Command(drain=drain)] * 2
    stage.tick(3)
    assert stage.controller.desired.version == 2
    stage.gateway.outcomes.clear()  # the gateway was restarted, and asks again
    stage.tick(3)
    assert stage.controller.desired.version == 2
    assert "d" in stage.gateway.outcomes


def test_nothing_is_missing_while_the_successor_of_a_worker_starts() -> None:
    """The old one serves until the new one does: whoever asks for readiness is told no less."""
    stage = Stage(prefill=1, decode=1)
    drain = pb.DrainWorkerRequest(request_id="d", worker_id="decode-0", replace=True)
    stage.gateway.commands.append(gateway_pb2.Command(drain=drain))
    stage.tick(3)
    assert stage.fleet.log == ["start decode-1 3"]
    assert stage.gateway.requests[-1].missing == []
    stage.ready("decode-1")
    stage.tick(3)
    assert stage.fleet.log[-1].startswith("stop decode-0")
    assert all(request.missing == [] for request in stage.gateway.requests)


def test_a_change_that_cannot_be_made_is_refused() -> None:
    stage = Stage(prefill=1, decode=1)
    stage.scale(pb.WORKER_ROLE_DECODE, 0)
    stage.tick(2)
    failure = stage.gateway.outcomes["r1"].failure
    assert failure.code == "invalid_request"
    assert "a decode worker is needed" in failure.message
    assert stage.controller.desired.version == 1


class TestLosses:
    """Workers that die or fall silent are ended and replaced."""

    def test_a_process_that_ends(self) -> None:
        stage = Stage(prefill=1, decode=1)
        stage.gone("decode-0", "the process of decode-0 ended with status -9")
        stage.tick()
        assert stage.fleet.log == ["kill decode-0"]
        stage.tick()
        assert stage.fleet.log == ["kill decode-0", "start decode-0 3"]
        assert "decode-0" not in stage.gateway.table
        stage.ready("decode-0")
        stage.tick(2)
        assert stage.gateway.table["decode-0"].epoch == 3
        assert stage.gateway.told[0] == (
            "decode-0 is lost: the process of decode-0 ended with status -9"
        )
        assert stage.gateway.told[-1] == "everything is as wanted"

    def test_a_worker_that_no_gateway_hears_of(self) -> None:
        """Its process looks well: it is frozen, or cut off."""
        stage = Stage(prefill=1, decode=1)
        stage.tick()
        stage.gateway.silent.add("decode-0")
        stage.tick(7)
        assert stage.fleet.log == []
        stage.tick(2)
        assert stage.fleet.log[0] == "kill decode-0"
        assert "decode-0 is lost: no sign of life" in stage.gateway.told

    def test_a_short_silence_is_forgiven(self) -> None:
        stage = Stage(prefill=1, decode=1)
        for _ in range(5):
            stage.gateway.silent.add("decode-0")
            stage.tick(6)
            stage.gateway.silent.clear()
            stage.tick()
        assert stage.fleet.log == []

    def test_a_gateway_that_does_not_answer_says_nothing_about_workers(self) -> None:
        stage = Stage(prefill=1, decode=1)
        stage.tick()

        def slow(request: gateway_pb2.SyncRequest, timeout_s: float) -> gateway_pb2.SyncResponse:
            stage.clock.advance(2.0)
            raise DeadlineExceeded("the gateway did not take the table within 2 s")

        answering, stage.gateway.sync = stage.gateway.sync, slow  # type: ignore[method-assign]
        stage.tick(20)
        stage.gateway.sync = answering  # type: ignore[method-assign]
        stage.tick(3)
        assert stage.fleet.log == []

    def test_a_new_worker_gets_time_to_be_heard_of(self) -> None:
        stage = Stage(prefill=1, decode=1)
        stage.scale(pb.WORKER_ROLE_DECODE, 2)
        stage.tick()
        stage.gateway.silent.add("decode-1")
        stage.ready("decode-1")
        stage.tick(10, 2.0)
        assert stage.fleet.log == ["start decode-1 3"]
        stage.tick(10, 2.0)
        assert "kill decode-1" in stage.fleet.log

    def test_one_that_hangs_at_its_end(self) -> None:
        stage = Stage(prefill=1, decode=2)
        stage.scale(pb.WORKER_ROLE_DECODE, 1)
        stage.tick(2)
        stage.gateway.silent.add("decode-1")
        stage.tick(10, 1.0)
        assert stage.fleet.log == ["stop decode-1 600"]
        stage.tick(8, 1.0)
        assert stage.fleet.log[-1] == "kill decode-1"
        stage.tick()
        assert not [entry for entry in stage.fleet.log if entry.startswith("start")]

    def test_workers_that_do_not_start_are_given_up_until_somebody_asks(self) -> None:
        stage = Stage(prefill=1, decode=1)
        stage.gone("decode-0")
        stage.fleet.refusal = CheckpointError("config.json is gone")
        stage.tick(100, 5.0)
        assert stage.gateway.told[-1] == (
            "decode workers do not start, given up: config.json is gone"
        )
        (pool,) = [p for p in stage.cluster.pools if p.role == pb.WORKER_ROLE_DECODE]
        assert pool.problem == f"gave up after {GIVE_UP_AFTER} failures: config.json is gone"
        assert stage.gateway.requests[-1].missing == [f"1 decode worker is missing: {pool.problem}"]
        stage.fleet.refusal = None
        stage.scale(pb.WORKER_ROLE_DECODE, 1)
        stage.tick()
        assert stage.fleet.log[-1] == "start decode-0 3"

    def test_without_any_worker_and_no_way_to_get_one_it_is_over(self) -> None:
        stage = Stage(mixed=1)
        stage.gone("mixed-0")
        stage.fleet.refusal = CheckpointError("config.json is gone")
        with pytest.raises(ServerError, match=r"config\.json is gone"):
            stage.tick(100, 5.0)


def test_workers_that_cannot_serve_together_are_the_operator_s_mistake() -> None:
    stage = Stage(prefill=1, decode=1)
    stage.gateway.problem = ConfigError("workers have different block sizes")
    with pytest.raises(ConfigError, match="block sizes"):
        stage.controller.introduce()


def test_what_an_exchange_that_failed_would_have_told_is_told_by_the_next() -> None:
    stage = Stage(prefill=1, decode=1)
    stage.scale(pb.WORKER_ROLE_DECODE, 2)
    stage.tick()
    stage.gateway.trouble = Unavailable("the gateway is restarting")
    stage.ready("decode-1")
    stage.tick(3)
    assert stage.gateway.events == []
    stage.gateway.trouble = None
    stage.tick(2)
    assert len(stage.gateway.told) == 4
    assert stage.gateway.table["decode-1"].epoch == 3


class Scaled(Stage):
    """A stage whose decode pool sizes itself."""

    def __init__(self, request_id: str = "a1", **sizes: int) -> None:
        super().__init__(**sizes)
        policy = pb.Autoscaling(min=1, max=3, tpot_ms=40.0)
        request = pb.AutoscalePoolRequest(
            request_id=request_id, pool=pb.WORKER_ROLE_DECODE, autoscaling=policy
        )
        self.gateway.commands.append(gateway_pb2.Command(autoscale=request))
        self.load(0.5)

    def load(self, full: float, waiting: int = 0) -> None:
        """Every decode worker is so full from now on."""
        load = gateway_pb2.Load(running=10, waiting=waiting, full=full)
        self.gateway.loads = {f"decode-{number}": load for number in range(4)}

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.tick(seconds=1.0)
            for name, seen in list(self.fleet.sightings.items()):
                if seen.state == "starting":
                    self.ready(name)
                elif f"stop {name} 600" in self.fleet.log[-2:]:
                    self.gone(name)

    @property
    def decode(self) -> pb.Pool:
        return {pool.role: pool for pool in self.cluster.pools}[pb.WORKER_ROLE_DECODE]


def test_a_pool_that_sizes_itself_follows_its_load() -> None:
    stage = Scaled(prefill=1, decode=1)
    stage.run(30)
    assert stage.decode.size == 1
    assert stage.decode.autoscaling.max == 3
    stage.load(0.9, waiting=5)
    stage.run(60)
    assert (stage.decode.size, stage.decode.serving) == (3, 3)
    stage.load(0.1)
    stage.run(400)
    assert (stage.decode.size, stage.decode.serving) == (1, 1)
    # The window takes the new load in bit by bit.
    assert 1 <= stage.decode.grown <= 2 and 1 <= stage.decode.shrunk <= 2
    assert "load 0.1" in stage.decode.verdict
    decisions = [text for text in stage.gateway.told if text.startswith("decode pool")]
    assert decisions[0].startswith("decode pool 1 → ")
    assert "without room" in decisions[0]
    assert any("stays at 3" in text and "max is 3" in text for text in decisions)
    changes = [text for text in decisions if "→" in text]
    assert "→ 1: load 0." in changes[-1]


def test_nothing_is_decided_while_the_gateway_says_nothing() -> None:
    stage = Scaled(prefill=1, decode=1)
    stage.run(30)
    stage.load(0.9, waiting=5)
    stage.gateway.trouble = Unavailable("the gateway is restarting")
    stage.run(60)
    assert stage.controller.desired.sizes["decode"] == 1


def test_the_same_request_to_autoscale_is_taken_once() -> None:
    stage = Scaled(prefill=1, decode=1)
    stage.gateway.commands *= 2
    stage.run(3)
    assert (
        stage.gateway.told.count(
            "wanted: decode pool sizes itself: 1 to 3 workers for TPOT 40 ms (drain: finish)"
        )
        == 1
    )
