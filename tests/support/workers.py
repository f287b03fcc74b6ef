"""Workers on loopback, in this process or in their own, and what speaks to them as a gateway does.

`Gateway` is a raw session: it submits what it is given and keeps what comes back, so that tests
see the protocol and not the dispatcher's corrections of it.
"""

import asyncio
import gc
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc

from twinflow.protos.errors import TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.runtime.outputs import CompletionOutput, FinishReason, PhaseTime, TokenLogprobs
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.config import WorkerConfig
from twinflow.workers.convert import delta_from_pb, sampling_to_pb
from twinflow.workers.mutual_tls import MutualTls
from twinflow.workers.rpc import call_metadata, open_channel
from twinflow.workers.server import WorkerServer

TOKEN = "secret of the tests"
# Longest wait for something that happens at once on an idle machine.
PATIENCE_S = 30.0

_numbers = itertools.count()


class Oracle(Protocol):
    """Completes a prompt in one engine, offline."""

    def __call__(self, prompt: Sequence[int], params: SamplingParams) -> CompletionOutput: ...


def worker_config(model: Path, worker_id: str, **changes: Any) -> WorkerConfig:
    """A small worker; the first part of its id is its role."""
    settings: dict[str, Any] = {
        "epoch": 1,
        "dtype": "float32",
        "role": worker_id.partition("-")[0],
        "threads": 1,
        "max_model_len": 256,
        "num_kv_blocks": 161,
        "block_size": 8,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 32,
        "token": TOKEN,
        "kv_transfer_timeout_s": 20.0,
    }
    return WorkerConfig(worker_id=worker_id, model=model, **(settings | changes))


@asynccontextmanager
async def running(*configs: WorkerConfig) -> AsyncIterator[list[WorkerServer]]:
    """Workers in this process, stopped at the end; nothing may fail unheard meanwhile."""
    problems: list[dict[str, Any]] = []
    events = asyncio.get_running_loop()
    events.set_exception_handler(lambda loop, context: problems.append(context))
    workers = [WorkerServer(config) for config in configs]
    try:
        for worker in workers:
            await worker.start()
        yield workers
    finally:
        for worker in workers:
            await worker.stop(0.0)
    gc.collect()
    assert not problems


def peer_of(worker: WorkerServer, **changes: Any) -> pb.Peer:
    """Where a decode worker finds `worker`; `changes` are fields of the message."""
    me = worker.description
    fields: dict[str, Any] = {
        "worker_id": me.worker_id,
        "epoch": me.epoch,
        "address": me.address,
        "ranks": me.ranks,
    }
    return pb.Peer(**(fields | changes))


def submission(
    prompt: Sequence[int], params: SamplingParams, prefill: pb.Peer | None = None, **changes: Any
) -> pb.Submission:
    """A request as the dispatcher sends it, with an id of its own."""
    fields: dict[str, Any] = {
        "request_id": f"request-{next(_numbers)}",
        "prompt_token_ids": prompt,
        "sampling": sampling_to_pb(params),
        "max_tokens": params.max_tokens or 0,
        "min_tokens": params.min_tokens,
        "stop_token_ids": params.stop_token_ids,
        "eos_token_ids": () if params.ignore_eos else (2,),
        "deadline_ms": 120_000,
        "logprobs": params.logprobs,
        "prefill": prefill,
    }
    return pb.Submission(**(fields | changes))


@dataclass
class Answer:
    """What has come back for one submission."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    phases: tuple[PhaseTime, ...] = ()
    error: TwinflowError | None = None
    lost: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def phase_names(self) -> list[str]:
        """The phases of the timeline."""
        return [phase.name for phase in self.phases]

    def take(self, output: pb.RequestOutput) -> None:
        """Add an output."""
        assert not self.done.is_set(), "an output after the last"
        try:
            delta = delta_from_pb(output)
        except TwinflowError as error:
            self.error = error
            self.done.set()
            return
        if not self.tokens:
            self.cached_tokens = delta.cached_tokens
        self.tokens += delta.token_ids
        self.logprobs += delta.logprobs
        self.begun.set()
        if delta.finish_reason is not None:
            self.finish_reason, self.phases = delta.finish_reason, delta.phases
            self.done.set()


class Gateway:
    """A session with one worker; made by `attached`."""

    def __init__(self, address: str, token: str = TOKEN, tls: MutualTls | None = None) -> None:
        self._channel = open_channel(address, tls)
        self._call = rpc.WorkerStub(self._channel).Attach(metadata=call_metadata(token))
        self._answers: dict[tuple[str, int], Answer] = {}
        self._reader = asyncio.create_task(self._read())
        self._writing = asyncio.Lock()  # a call takes one write at a time
        self.stats = pb.WorkerStats()
        self.error: grpc.aio.AioRpcError | None = None
        self.attached = asyncio.Event()
        self.messages = 0

    async def submit(self, request: pb.Submission) -> Answer:
        """Send a request; its answer fills up from now on."""
        answer = self._answers[request.request_id, request.attempt] = Answer()
        await self.send(pb.AttachRequest(submit=request))
        return answer

    async def complete(self, request: pb.Submission) -> Answer:
        """Send a request and wait for its end."""
        answer = await self.submit(request)
        await within(answer.done.wait(), f"the end of {request.request_id}")
        return answer

    async def abort(self, request: pb.Submission) -> None:
        """Give a request up."""
        abort = pb.Abort(request_id=request.request_id, attempt=request.attempt)
        await self.send(pb.AttachRequest(abort=abort))

    async def send(self, message: pb.AttachRequest) -> None:
        """Send whatever message."""
        async with self._writing:
            await self._call.write(message)

    async def leave(self) -> None:
        """End the session in good order."""
        await self._call.done_writing()
        await within(asyncio.wait({self._reader}), "the end of the session")

    async def wait_ended(self) -> None:
        """Wait until the worker ends the session."""
        await within(asyncio.wait({self._reader}), "the end of the session")

    async def close(self) -> None:
        """Vanish."""
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def _read(self) -> None:
        try:
            while isinstance(message := await self._call.read(), pb.AttachResponse):
                self.messages += 1
                self.stats = message.stats
                self.attached.set()
                for output in message.outputs:
                    answer = self._answers.get((output.request_id, output.attempt))
                    if answer is not None:
                        answer.take(output)
        except grpc.aio.AioRpcError as error:
            self.error = error
        finally:
            for answer in self._answers.values():
                answer.lost = not answer.done.is_set()
                answer.done.set()


@asynccontextmanager
async def attached(
    worker: WorkerServer | str, token: str = TOKEN, tls: MutualTls | None = None
) -> AsyncIterator[Gateway]:
    """A session with a worker, which is given or at an address."""
    address = worker if isinstance(worker, str) else worker.description.address
    gateway = Gateway(address, token, tls)
    try:
        await within(gateway.attached.wait(), f"the first message of {address}")
        yield gateway
    finally:
        await gateway.close()


async def within(wait: Any, what: str) -> Any:
    """Await something that must come soon."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await wait
    except TimeoutError:
        raise AssertionError(f"{what} did not come within {PATIENCE_S:g} s") from None


async def eventually(condition: Callable[[], object], what: Callable[[], object] | str) -> None:
    """Wait until a condition holds; `what` says or computes what was waited for."""
    end = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"still not so: {what() if callable(what) else what}")
        await asyncio.sleep(0.005)


def holdings(worker: WorkerServer) -> dict[str, int]:
    """Everything that requests and hand-offs hold of a worker; zero when it is idle."""
    parts = worker.parts
    now = parts.core.loop.snapshot
    return {
        "running": now.num_running,
        "waiting": now.num_waiting,
        "receiving": now.num_receiving,
        "held": now.num_held,
        "leased blocks": now.leased_blocks,
        "blocks": now.total_blocks - now.free_blocks,
        "owners": len(parts.core.outputs),
        "incoming": len(parts.receiver),
        "outgoing": len(parts.sender),
        "leases to receive": parts.links.receiving.num_leased,
        "leases to send": parts.links.sending.num_leased,
        "stores without a link": len(parts.links.stores) - parts.links.sending.num_idle,
    }


async def idle(*workers: WorkerServer) -> None:
    """Wait until nothing is held at any of the workers, then recount everything."""
    for worker in workers:
        await eventually(
            lambda worker=worker: not any(holdings(worker).values()),  # type: ignore[misc]
            lambda worker=worker: (worker.config.worker_id, holdings(worker)),  # type: ignore[misc]
        )
        await worker.check_integrity()


async def forget_idle_links(worker: WorkerServer) -> None:
    """Close a worker's idle links, as it does with those that nobody has used for long."""
    for pool in (worker.parts.links.sending, worker.parts.links.receiving):
        for link in pool._take_idle_where(lambda peer: True):
            await asyncio.to_thread(link.close)


def random_prompt(rng: random.Random, length: int) -> list[int]:
    """A prompt that shares no block with another one."""
    return [rng.randrange(3, 300) for _ in range(length)]
