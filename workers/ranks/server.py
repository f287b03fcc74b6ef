"""A rank that is not rank 0 as a service: loads its share, follows, ends with its worker.

It follows rank 0, and serves the ranks of other workers what it holds of their KV. The object is
the same under every launcher.
"""

import asyncio
import threading
from dataclasses import dataclass

import structlog
import torch

from twinflow.parallel.links.manifest import choose_layers_per_unit
from twinflow.protos.errors import RankLost
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.runner_loading import LoadProgress
from twinflow.workers.config import WorkerConfig
from twinflow.workers.fault_points import FaultPoints, Point
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.follower import FollowerHandoffs
from twinflow.workers.handoff.links import PeerLinks
from twinflow.workers.handoff.orders import KIND
from twinflow.workers.handoff.store_calls import StoreCalls
from twinflow.workers.mutual_tls import MutualTls
from twinflow.workers.options import engine_options
from twinflow.workers.ranks.build import BuiltFollower, build_follower
from twinflow.workers.ranks.config import TeamConfig
from twinflow.workers.rpc import create_server, listen_on
from twinflow.workers.service import HandoffService

# What rank 0 gets, beyond the grace of its requests, to say that it ends.
_LAST_WORD_S = 10.0
# Calls that are still under way when everything else has ended are cut off after this long.
_LAST_CALLS_S = 0.5


@dataclass(frozen=True, slots=True)
class FollowerParts:
    """What a started rank consists of.

    Attributes:
        built: its share of the model.
        links: to the ranks of other workers.
        store_calls: how these reach the rendezvous of links.
        handoffs: to and from this rank.
    """

    built: BuiltFollower
    links: PeerLinks
    store_calls: StoreCalls
    handoffs: FollowerHandoffs


class FollowerServer:
    """A follower's life from loading to the end of its worker.

    Args:
        config: of the worker, with the rank.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self._tls = MutualTls.of(config.tls)
        self._grpc = create_server(config.token, self._tls)
        self._faults = FaultPoints(config.fault_points, config.process_name)
        self._parts: FollowerParts | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[RankLost | None] | None = None

    @property
    def parts(self) -> FollowerParts:
        """What the rank consists of; there from `start` on."""
        if self._parts is None:
            raise RuntimeError("the rank has not started")
        return self._parts

    async def start(self, progress: LoadProgress | None = None) -> None:
        """Load the share of this rank and begin to follow.

        Raises:
            SetupError: the model or the configuration cannot be served.
            RankLost: another rank did not come, or is gone.
        """
        events = asyncio.get_running_loop()
        self._ended = events.create_future()
        built = await asyncio.to_thread(self._build, progress)
        try:
            who = f"worker {self.config.worker_id}"
            address = listen_on(self._grpc, self.config.host, who, self._tls)
            self._parts = self._assemble(built)
            await self._grpc.start()
            await asyncio.to_thread(built.ready, address)
        except BaseException as error:  # also what ends the process: rank 0 is told
            await asyncio.to_thread(built.fail, error)
            await self._close()
            raise
        self._thread = threading.Thread(
            target=self._follow, args=(built, events), name="twinflow-rank", daemon=True
        )
        self._thread.start()

    async def wait_ended(self) -> None:
        """Wait until rank 0 has ended the worker in good order.

        Raises:
            RankLost: it ended otherwise; the process shall end, too.
        """
        if self._ended is None:
            raise RuntimeError("the rank has not started")
        lost = await asyncio.shield(self._ended)
        if lost is not None:
            raise lost

    async def drain(self, grace_s: float) -> None:
        """Wait until rank 0 has ended the worker, at most `grace_s`; may be cancelled."""
        if self._ended is not None:
            await asyncio.wait([self._ended], timeout=grace_s)

    async def stop(self, grace_s: float) -> None:
        """End with rank 0, or without it if it takes longer than its requests may.

        Args:
            grace_s: what the requests of rank 0 are given to finish.
        """
        if self._thread is None or self._ended is None:
            return
        await self.drain(grace_s + _LAST_WORD_S)
        if not self._ended.done():
            structlog.get_logger().warning(
                "rank 0 did not end the worker", worker=self.config.worker_id
            )
        await asyncio.to_thread(self.parts.built.follower.close)
        await asyncio.to_thread(self._thread.join)
        await self._close()

    async def _close(self) -> None:
        """End every hand-off and give everything back."""
        if self._parts is not None:
            await self._parts.handoffs.close()
        await self._grpc.stop(_LAST_CALLS_S)
        if self._parts is not None:
            await self._parts.links.close()
            self._parts.store_calls.close()

    def _build(self, progress: LoadProgress | None) -> BuiltFollower:
        self._faults.reach(Point.START_UP)
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        options, team = engine_options(self.config), TeamConfig.of(self.config)
        return build_follower(options, team, on_kv=self._tell_kv, progress=progress)

    def _tell_kv(self, progress: KVProgress) -> None:
        self._faults.reach(Point.PREFILL)
        self.parts.handoffs.on_kv(progress)

    def _assemble(self, built: BuiltFollower) -> FollowerParts:
        cache = built.runner.kv_cache
        links = PeerLinks(self.config, cache.data.device, self._tls)
        store_calls = StoreCalls(links.stores, links.max_sending)
        end = HandoffEnd(
            config=self.config,
            fingerprint=built.plan.fingerprint,
            cache=cache,
            layers_per_unit=choose_layers_per_unit(built.plan.layout),
            links=links,
            share=built.plan.share,
            faults=self._faults,
        )
        handoffs = FollowerHandoffs(end, lambda body: built.follower.report(KIND, body))
        built.follower.on_order(KIND, handoffs.hear)
        rpc.add_WorkerServicer_to_server(HandoffService(handoffs.sender, store_calls), self._grpc)
        return FollowerParts(built, links, store_calls, handoffs)

    def _follow(self, built: BuiltFollower, events: asyncio.AbstractEventLoop) -> None:
        lost: RankLost | None = None
        try:
            built.loop.run()
        except RankLost as error:
            lost = error
        events.call_soon_threadsafe(self._end, lost)

    def _end(self, lost: RankLost | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(lost)
