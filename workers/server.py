"""One worker: builds its engine, serves `worker.proto`, stops cleanly.

The object is the same under every launcher: an actor of Ray, a plain process, a task in a test.
"""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog
import torch

from twinflow.parallel.links.store import StoreDirectory
from twinflow.protos.errors import ConfigError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.runtime.build import BuiltEngine, EngineOptions, LoadProgress, build_engine
from twinflow.runtime.engine import KVProgress
from twinflow.workers.config import WorkerConfig
from twinflow.workers.core import WorkerCore
from twinflow.workers.handoff.links import PeerLinks
from twinflow.workers.handoff.receiver import KVReceiver
from twinflow.workers.handoff.sender import KVSender
from twinflow.workers.handoff.store_calls import StoreCalls
from twinflow.workers.role import ROLES
from twinflow.workers.rpc import PROTOCOL_VERSION, create_server
from twinflow.workers.service import WorkerService

# Each hand-off in flight may block one thread on its link and one on its rendezvous.
_HANDOFF_THREADS = 32
_STOP_S = 10.0


class WorkerServer:
    """A worker's life from loading to stopping.

    Args:
        config: of the worker.
        clock: seconds, monotonic.
    """

    def __init__(self, config: WorkerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock = clock
        self._threads = ThreadPoolExecutor(_HANDOFF_THREADS, "twinflow-handoff")
        self._stores = StoreDirectory()
        self._grpc = create_server(config.token)
        self._on_kv: Callable[[KVProgress], None] = lambda progress: None
        self._core: WorkerCore | None = None
        self._sender: KVSender | None = None
        self._receiver: KVReceiver | None = None
        self.description = pb.DescribeResponse()

    @property
    def core(self) -> WorkerCore:
        """The engine and its requests; there from `start` on."""
        if self._core is None:
            raise RuntimeError("the worker has not started")
        return self._core

    async def start(self, progress: LoadProgress | None = None) -> str:
        """Load the model and serve; returns the address of the gRPC server.

        Raises:
            SetupError: the model or the configuration cannot be served.
        """
        built = await asyncio.to_thread(self._build, progress)
        port = self._grpc.add_insecure_port(f"{self.config.host}:0")
        if port == 0:
            raise ConfigError(f"worker {self.config.worker_id} cannot listen on {self.config.host}")
        self.description = self._describe(built, f"{self.config.host}:{port}")
        self._wire(built)
        await self._grpc.start()
        return self.description.address

    def _build(self, progress: LoadProgress | None) -> BuiltEngine:
        config = self.config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        options = EngineOptions(
            model=config.model,
            dtype=config.dtype,
            device=config.device,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            block_size=config.block_size,
            num_kv_blocks=config.num_kv_blocks,
            kv_cache_memory=config.kv_cache_memory,
            enable_prefix_caching=config.enable_prefix_caching,
            scheduler=config.scheduler,
        )
        return build_engine(
            options, clock=self._clock, on_kv=lambda kv: self._on_kv(kv), progress=progress
        )

    def _wire(self, built: BuiltEngine) -> None:
        core = self._core = WorkerCore(self.config, built.engine)
        links = PeerLinks(self.config, self._stores, self._threads)
        self._sender = KVSender(core, built, links, self.description)
        self._receiver = KVReceiver(core, built, links, self.description)
        self._on_kv = self._sender.on_kv
        service = WorkerService(
            core, self._sender, StoreCalls(self._stores, self._threads), self.description
        )
        rpc.add_WorkerServicer_to_server(service, self._grpc)
        core.start(self._receiver)

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
            num_blocks=built.engine.blocks.num_blocks,
            max_model_len=built.config.max_model_len,
            max_num_seqs=built.config.max_num_seqs,
            vocab_size=built.model.vocab_size,
            dtype=built.dtype,
            pid=os.getpid(),
        )

    async def stop(self, grace_s: float) -> None:
        """Finish what runs for at most `grace_s`, then end everything."""
        if self._core is not None:
            left = await self._core.drain(grace_s)
            if left:
                structlog.get_logger().warning(
                    "requests cut off", worker=self.config.worker_id, requests=left
                )
        if self._receiver is not None:
            await self._receiver.close()
        await self._grpc.stop(grace=0.5)
        if self._sender is not None:
            await self._sender.close()
        if self._core is not None:
            await self._core.loop.stop(_STOP_S)
        self._stores.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
