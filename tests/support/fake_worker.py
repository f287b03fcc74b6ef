"""A worker with behaviour but without a model: a real gRPC server of `worker.proto`.

It generates `next_token`, so every token depends on all tokens before it, and a token that a
client lost or saw twice shows. It can die, freeze, refuse, drain and come back with a new epoch;
it counts what it was sent and what is left.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.support.engines import next_token

from twinflow.cluster.dispatch.address import WorkerAddress
from twinflow.protos.errors import DeadlineExceeded, TwinflowError, Unavailable
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.runtime.outputs import FinishReason, PhaseTime, TokenDelta, TokenLogprobs
from twinflow.workers.convert import failure_to_pb, output_to_pb
from twinflow.workers.mutual_tls import MutualTls
from twinflow.workers.role import ROLES, Role
from twinflow.workers.rpc import PROTOCOL_VERSION, create_server

TOKEN = "secret-of-the-deployment"
_STATS_INTERVAL_S = 0.05
Key = tuple[str, int]


def logprob_at(position: int) -> float:
    """What the fake model says about the token at a position; exact in float32."""
    return -position / 4


@dataclass
class Behaviour:
    """What a fake worker does with a submission; may be changed while it runs.

    Attributes:
        gate: submissions wait for it before their first token.
        pause_after: tokens of a submission after which it waits until it is aborted.
        failure: every submission ends with this error.
        forgets_deadlines: a submission without tokens is not ended at its deadline.
        cached_tokens: reported with the first token.
        load: reported, beside what is live.
    """

    gate: asyncio.Event | None = None
    pause_after: int | None = None
    failure: TwinflowError | None = None
    forgets_deadlines: bool = False
    cached_tokens: int = 0
    load: pb.WorkerStats = field(default_factory=lambda: pb.WorkerStats(free_blocks=1000))


class FakeWorker(rpc.WorkerServicer):
    """One worker and, by turns, its several lives.

    Attributes:
        description: what it answers to Describe.
        submissions: everything it was sent.
        live: submissions that are neither finished nor aborted.
        aborted: submissions that were aborted, also by the end of their session.
        sessions: gateways that are attached.
        tls: certificates of its next lives; None for clear text.
    """

    def __init__(self, worker_id: str, role: Role = "mixed", **changes: Any) -> None:
        self.behaviour = Behaviour()
        self.description = pb.DescribeResponse(
            **{
                "protocol_version": PROTOCOL_VERSION,
                "worker_id": worker_id,
                "epoch": 1,
                "role": ROLES[role],
                "model_fingerprint": "weights-float32",
                "kv_layout": "layout",
                "block_size": 4,
                "num_blocks": 1000,
                "max_model_len": 256,
                "vocab_size": 997,
                "dtype": "float32",
                **changes,
            }
        )
        self.submissions: list[pb.Submission] = []
        self.live: set[Key] = set()
        self.aborted: list[Key] = []
        self.sessions = 0
        self._frozen = asyncio.Event()
        self._server: Any = None
        self._port = 0
        self.tls: MutualTls | None = None

    @property
    def where(self) -> WorkerAddress:
        """Its address, which stays the same from life to life."""
        return WorkerAddress(self.description.worker_id, f"127.0.0.1:{self._port}")

    async def start(self, token: str = TOKEN) -> WorkerAddress:
        """Serve."""
        self._server = create_server(token, self.tls)
        rpc.add_WorkerServicer_to_server(self, self._server)
        address = f"127.0.0.1:{self._port}"
        if self.tls is None:
            self._port = self._server.add_insecure_port(address)
        else:
            self._port = self._server.add_secure_port(address, self.tls.server_credentials())
        await self._server.start()
        self.description.address = self.where.address
        return self.where

    async def die(self) -> None:
        """Break every call, at once."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
            await until(lambda: not self.sessions)

    async def restart(self, **changes: Any) -> None:
        """A new life at the same address."""
        await self.die()
        self._frozen.clear()
        self.description.epoch += 1
        self.description.MergeFrom(pb.DescribeResponse(**changes))
        await self.start()

    def freeze(self) -> None:
        """Say nothing more, and keep every connection."""
        self._frozen.set()

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:
        return self.description

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AttachRequest], context: Any
    ) -> AsyncGenerator[pb.AttachResponse, None]:
        session = _Session(self)
        self.sessions += 1
        reader = asyncio.create_task(session.read(request_iterator))
        try:
            yield pb.AttachResponse(stats=self.stats())
            while True:
                outputs = await session.next_outputs()
                if self._frozen.is_set():
                    await asyncio.Event().wait()
                yield pb.AttachResponse(outputs=outputs, stats=self.stats())
        finally:
            self.sessions -= 1
            reader.cancel()
            session.close()

    def stats(self) -> pb.WorkerStats:
        """Its load."""
        stats = pb.WorkerStats()
        stats.CopyFrom(self.behaviour.load)
        return stats

    def drain(self) -> None:
        """Refuse what comes from now on, and say so."""
        self.behaviour.load.draining = True
        self.behaviour.failure = Unavailable("the worker is draining")


class _Session:
    """What one gateway has submitted."""

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker
        self._outputs: asyncio.Queue[pb.RequestOutput] = asyncio.Queue()
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    async def read(self, requests: AsyncIterator[pb.AttachRequest]) -> None:
        """Act on the gateway's messages."""
        async for message in requests:
            if message.WhichOneof("message") == "submit":
                self._submit(message.submit)
            else:
                self._abort((message.abort.request_id, message.abort.attempt))

    async def next_outputs(self) -> list[pb.RequestOutput]:
        """What there is to tell, perhaps nothing, after a short time."""
        with suppress(TimeoutError):
            return [await asyncio.wait_for(self._outputs.get(), _STATS_INTERVAL_S)]
        return []

    def close(self) -> None:
        """Abort everything, as the end of a session does."""
        for key in list(self._tasks):
            self._abort(key)

    def _submit(self, submission: pb.Submission) -> None:
        key = (submission.request_id, submission.attempt)
        self._worker.submissions.append(submission)
        self._worker.live.add(key)
        self._tasks[key] = asyncio.create_task(self._serve(submission, key))

    def _abort(self, key: Key) -> None:
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()
            self._worker.live.discard(key)
            self._worker.aborted.append(key)

    async def _serve(self, submission: pb.Submission, key: Key) -> None:
        behaviour = self._worker.behaviour
        deadline_s = None if behaviour.forgets_deadlines else submission.deadline_ms / 1000
        try:
            async with asyncio.timeout(deadline_s):
                if behaviour.failure is not None:
                    raise behaviour.failure
                await self._generate(submission, key)
        except TimeoutError:
            self._outputs.put_nowait(failure_to_pb(*key, DeadlineExceeded("too late")))
        except TwinflowError as error:
            self._outputs.put_nowait(failure_to_pb(*key, error))
        self._worker.live.discard(key)
        del self._tasks[key]

    async def _generate(self, submission: pb.Submission, key: Key) -> None:
        behaviour = self._worker.behaviour
        tokens = [*submission.prompt_token_ids, *submission.output_token_ids]
        end = len(submission.prompt_token_ids) + submission.max_tokens
        first = len(tokens)
        if behaviour.gate is not None:
            await behaviour.gate.wait()
        while len(tokens) < end:
            if behaviour.pause_after is not None and len(tokens) - first >= behaviour.pause_after:
                await asyncio.Event().wait()
            position = len(tokens)
            tokens.append(next_token(tokens))
            cached = behaviour.cached_tokens if position == first else 0
            delta = _delta(submission, tokens, last=len(tokens) == end, cached=cached)
            self._outputs.put_nowait(output_to_pb(*key, delta))
            await asyncio.sleep(0)


def _delta(
    submission: pb.Submission, tokens: Sequence[int], *, last: bool, cached: int
) -> TokenDelta:
    wanted = submission.HasField("logprobs")
    entry = TokenLogprobs(tokens[-1], logprob_at(len(tokens) - 1))
    return TokenDelta(
        token_ids=(tokens[-1],),
        logprobs=(entry,) if wanted else (),
        finish_reason=FinishReason.LENGTH if last else None,
        cached_tokens=cached,
        phases=(PhaseTime("decode", 0.25),) if last else (),
    )


@asynccontextmanager
async def running(*workers: FakeWorker) -> AsyncGenerator[list[WorkerAddress], None]:
    """Serve with some workers; nothing may be live at the end."""
    addresses = [await worker.start() for worker in workers]
    try:
        yield addresses
    finally:
        await asyncio.gather(*(worker.die() for worker in workers))


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait until `condition()` is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
