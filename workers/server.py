"""One worker: builds its engine, serves `worker.proto`, stops cleanly.

The object is the same under every launcher: an actor of Ray, a plain process, a task in a test.
"""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import torch

from twinflow.protos.errors import ConfigError, RankLost
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.runtime.build import BuiltEngine, build_engine
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.runner_loading import LoadProgress
from twinflow.runtime.speculative.draft_arrival import ArrivalChoice
from twinflow.runtime.speculative.drafters.draft_kv import DraftKV
from twinflow.workers.config import WorkerConfig
from twinflow.workers.core import WorkerCore
from twinflow.workers.fault_points import FaultPoints, Point
from twinflow.workers.handoff.drafts import DraftHalves
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.links import PeerLinks
from twinflow.workers.handoff.others import OtherRanks
from twinflow.workers.handoff.prompts import HeldPrompts
from twinflow.workers.handoff.receiver import KVReceiver
from twinflow.workers.handoff.sender import KVSender
from twinflow.workers.handoff.store_calls import StoreCalls
from twinflow.workers.mutual_tls import MutualTls
from twinflow.workers.options import engine_options
from twinflow.workers.ranks.build import build_leader
from twinflow.workers.ranks.config import TeamConfig
from twinflow.workers.ranks.leader import Leader
from twinflow.workers.role import ROLES
from twinflow.workers.rpc import PROTOCOL_VERSION, create_server, listen_on
from twinflow.workers.service import WorkerService

_STOP_S = 10.0
# Calls that are still under way when everything else has ended are cut off after this long.
_LAST_CALLS_S = 0.5


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """What a started worker consists of.

    Attributes:
        core: the engine and its requests.
        built: the engine's model and KV memory.
        links: to other workers.
        store_calls: how its peers reach the rendezvous of links.
        others: its other ranks, as hand-offs see them.
        receiver: hand-offs to this worker.
        sender: hand-offs from this worker.
        service: its gRPC face.
    """

    core: WorkerCore
    built: BuiltEngine
    links: PeerLinks
    store_calls: StoreCalls
    others: OtherRanks
    receiver: KVReceiver
    sender: KVSender
    service: WorkerService


class WorkerServer:
    """A worker's life from loading to stopping.

    Args:
        config: of the worker.
        clock: seconds, monotonic.
    """

    def __init__(self, config: WorkerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock = clock
        self._tls = MutualTls.of(config.tls)
        self._grpc = create_server(config.token, self._tls)
        self._faults = FaultPoints(config.fault_points, config.process_name)
        self._on_kv: Callable[[KVProgress], None] = lambda progress: None
        self._parts: WorkerParts | None = None
        self._leader: Leader | None = None
        self.description = pb.DescribeResponse()

    @property
    def parts(self) -> WorkerParts:
        """What the worker consists of; there from `start` on."""
        if self._parts is None:
            raise RuntimeError("the worker has not started")
        return self._parts

    async def start(self, progress: LoadProgress | None = None) -> str:
        """Load the model and serve; returns the address of the gRPC server.

        Raises:
            SetupError: the model or the configuration cannot be served.
            RankLost: another rank of the worker did not come, or is gone.
        """
        if not self.config.token:
            raise ConfigError(
                f"worker {self.config.worker_id} has no token: without the deployment's secret "
                "anybody could use it"
            )
        built = await asyncio.to_thread(self._build, progress)
        who = f"worker {self.config.worker_id}"
        address = listen_on(self._grpc, self.config.host, who, self._tls)
        self.description = self._describe(built, address)
        self._parts = self._assemble(built)
        self._on_kv = self._parts.sender.on_kv
        rpc.add_WorkerServicer_to_server(self._parts.service, self._grpc)
        self._parts.core.start(self._parts.receiver)
        if self._leader is not None:
            self._leader.on_lost(self._lose)
        await self._grpc.start()
        return self.description.address

    def _build(self, progress: LoadProgress | None) -> BuiltEngine:
        config = self.config
        self._faults.reach(Point.START_UP)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        options, clock = engine_options(config), self._clock
        if config.tensor_parallel_size == 1:
            return build_engine(options, clock=clock, on_kv=self._tell_kv, progress=progress)
        team = TeamConfig.of(config)
        made = build_leader(options, team, clock=clock, on_kv=self._tell_kv, progress=progress)
        self._leader = made.leader
        return made.built

    def _tell_kv(self, progress: KVProgress) -> None:
        self._faults.reach(Point.PREFILL)
        self._on_kv(progress)

    def _assemble(self, built: BuiltEngine) -> WorkerParts:
        core = WorkerCore(
            self.config, built.engine, built.model.vocab_size, self._faults, built.speculation
        )
        links = PeerLinks(self.config, built.cache.data.device, self._tls)
        store_calls = StoreCalls(links.stores, links.max_sending)
        end = HandoffEnd(
            config=self.config,
            fingerprint=built.fingerprint,
            cache=built.cache,
            layers_per_unit=built.layers_per_unit,
            links=links,
            share=built.share,
            faults=core.faults,
        )
        others = OtherRanks(self._leader, end.patience_s)
        drafts = self._draft_halves(end, core, built.draft_kv)
        receiver = KVReceiver(end, core, others, drafts.receiver)
        sender = KVSender(end, HeldPrompts(core, others), drafts.sender)
        service = WorkerService(core, sender, store_calls, self.description)
        return WorkerParts(core, built, links, store_calls, others, receiver, sender, service)

    def _draft_halves(self, end: HandoffEnd, core: WorkerCore, kv: DraftKV | None) -> DraftHalves:
        speculation = self.config.speculative_config
        if kv is None or speculation is None or not kv.fingerprint:
            return DraftHalves()
        return DraftHalves.make(end, core, kv, ArrivalChoice(speculation.draft_kv))

    def _describe(self, built: BuiltEngine, address: str) -> pb.DescribeResponse:
        return pb.DescribeResponse(
            protocol_version=PROTOCOL_VERSION,
            worker_id=self.config.worker_id,
            epoch=self.config.epoch,
            role=ROLES[self.config.role],
            address=address,
            model_fingerprint=built.fingerprint,
            kv_layout=built.layout.digest(),
            block_size=built.config.block_size,
            num_blocks=built.engine.blocks.num_blocks * built.config.block_shards,
            max_model_len=built.config.max_model_len,
            max_num_seqs=built.config.max_num_seqs,
            vocab_size=built.model.vocab_size,
            dtype=built.dtype,
            pid=os.getpid(),
            ranks=self._ranks(built, address),
            lanes=pb.LaneInfo(
                wanted=built.lanes.wanted,
                backend=built.lanes.backend,
                description=built.lanes.description,
                reason=built.lanes.reason,
            ),
        )

    def _ranks(self, built: BuiltEngine, address: str) -> list[pb.KVRank]:
        """Who hands over which KV."""
        own = pb.KVRank(address=address, parts=[part.name for part in built.cache.layout.parts])
        others = () if self._leader is None else self._leader.others
        return [own, *(pb.KVRank(address=rank.address, parts=rank.parts) for rank in others)]

    def _lose(self, error: RankLost) -> None:
        """A rank is lost; called on any thread."""
        self.parts.others.lose(error)
        self.parts.core.loop.fail(error)

    async def check_integrity(self) -> None:
        """Recount everything that requests and hand-offs hold.

        Raises:
            AssertionError: the engine's blocks and queues disagree.
            RuntimeError: links or their stores do not add up.
            Unavailable: the engine has stopped.
        """
        await self.parts.core.check_integrity()
        self.parts.links.check_integrity()

    async def stop(self, grace_s: float) -> None:
        """Finish what runs for at most `grace_s`, then end everything."""
        parts = self._parts
        if parts is None:
            await self._grpc.stop(grace=None)
            await self._dismiss_ranks()
            return
        left = await parts.core.drain(grace_s)
        if left:
            structlog.get_logger().warning(
                "requests cut off", worker=self.config.worker_id, requests=left
            )
        parts.service.end_sessions()
        await parts.receiver.close()
        await self._grpc.stop(_LAST_CALLS_S)
        await parts.links.close()
        await parts.core.loop.stop(_STOP_S)
        await self._dismiss_ranks()
        parts.store_calls.close()

    async def _dismiss_ranks(self) -> None:
        if self._leader is not None:
            await asyncio.to_thread(self._leader.close)
