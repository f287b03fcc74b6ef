"""One worker, as a gateway sees it: a session that carries all requests to it.

The client keeps the session open, tells every request when it is lost, and connects again. It
makes no routing decision and never retries a request.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeAlias

import grpc
import structlog

from twinflow.cluster.dispatch.address import WorkerAddress
from twinflow.cluster.dispatch.backlog import Backlog
from twinflow.cluster.dispatch.census import difference
from twinflow.cluster.dispatch.config import DispatchConfig
from twinflow.cluster.gateway.backend import LaneInfo, WorkerInfo
from twinflow.cluster.router.snapshot import RankView, WorkerView
from twinflow.parallel.partition.backends.names import NONE
from twinflow.protos.errors import DeadlineExceeded, TwinflowError, Unavailable, WorkerLost
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.runtime.outputs import TokenDelta
from twinflow.workers.convert import delta_from_pb
from twinflow.workers.role import ROLE_NAMES, Role
from twinflow.workers.rpc import call_metadata, open_channel

# What arrived for a request and was not read yet.
_Stream = asyncio.Queue[TokenDelta | TwinflowError]
_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.AttachRequest, pb.AttachResponse]"
# Into which the limit of silence is cut.
_LOOKS = 4
StatsListener = Callable[[str, str, pb.WorkerStats], None]


class Moved(Unavailable):
    """A worker leaves, and its requests go on elsewhere."""


class WorkerClient:
    """Keeps a session with a worker.

    Args:
        where: the worker.
        token: the deployment's secret.
        on_stats: hears every load report.
        on_change: called when the worker comes up, goes down or is gone.
        config: time limits.
        reference: what the deployment's workers agree on; None for nothing yet.

    Attributes:
        description: what the worker said about itself when it was last connected to.
        computing: sequences sent to the worker, or to another one on its behalf, whose prompts it
            computes.
        promised: sequences that it decodes.
    """

    def __init__(
        self,
        where: WorkerAddress,
        token: str,
        *,
        on_stats: StatsListener,
        on_change: Callable[["WorkerClient"], None],
        config: DispatchConfig | None = None,
        reference: pb.DescribeResponse | None = None,
    ) -> None:
        self.where = where
        self.description: pb.DescribeResponse | None = None
        self._ranks: tuple[RankView, ...] = ()
        self.computing = Backlog()
        self.promised = Backlog()
        self._reference = reference
        self._config = config or DispatchConfig()
        self._metadata = call_metadata(token)
        self._on_stats = on_stats
        self._on_change = on_change
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._outgoing: asyncio.Queue[pb.AttachRequest] = asyncio.Queue()
        self._stats = pb.WorkerStats()
        self._num_messages = 0
        self._role: Role | None = None
        self._leaving = False
        self._up = False
        self._lost_at: float | None = None
        self._gone = False
        self._task: asyncio.Task[None] | None = None
        self._problem = "not connected yet"

    @property
    def num_live(self) -> int:
        """Requests that are neither finished nor aborted."""
        return len(self._streams)

    @property
    def running(self) -> bool:
        """Whether the client still tries to keep the session open."""
        return self._task is not None and not self._task.done()

    @property
    def up(self) -> bool:
        """Whether the session is open."""
        return self._up

    @property
    def gone(self) -> bool:
        """Whether it was there, and has been away for so long that it may not come back."""
        return self._gone

    @property
    def problem(self) -> str:
        """Why the session is not open."""
        return "" if self._up else self._problem

    @property
    def stats(self) -> pb.WorkerStats:
        """What it reported last."""
        return self._stats

    @property
    def leaving(self) -> bool:
        """Whether it shall get no more requests."""
        return self._leaving

    @property
    def role(self) -> Role:
        """Which requests the worker gets; `mixed` until it is known."""
        if self._role is not None:
            return self._role
        role = self.description.role if self.description else pb.ROLE_MIXED
        return ROLE_NAMES.get(role, "mixed")

    def view(self) -> WorkerView:
        """The worker at this moment, for routing."""
        description = self.description or pb.DescribeResponse()
        stats = self._stats
        return WorkerView(
            worker_id=self.where.worker_id,
            epoch=description.epoch,
            address=self.where.address,
            ranks=self._ranks,
            role=self.role,
            up=self._up,
            draining=self._leaving or stats.draining,
            block_size=description.block_size or 1,
            free_blocks=stats.free_blocks,
            num_requests=stats.num_running + stats.num_waiting + stats.num_receiving,
            queued_tokens=stats.waiting_tokens,
            assigned_requests=len(self._streams),
            assigned_tokens=self.computing.num_tokens,
            promised_tokens=self.promised.num_tokens,
        )

    def info(self) -> WorkerInfo:
        """What the worker has said about itself."""
        found = self.description or pb.DescribeResponse()
        return WorkerInfo(
            worker_id=self.where.worker_id,
            role=self.role,
            up=self._up,
            ranks=len(found.ranks),
            num_blocks=found.num_blocks,
            max_num_seqs=found.max_num_seqs,
            lanes=_lanes(found.lanes, self._stats.lanes.failure),
        )

    def start(self) -> None:
        """Connect, and stay connected until `close`."""
        self._task = asyncio.create_task(self._run(), name=f"worker-{self.where.worker_id}")

    def assign(self, role: Role | None, *, leaving: bool) -> None:
        """Say what the worker is used for.

        Args:
            role: which requests it gets; None for those it was started for.
            leaving: it gets none any more; those that it has go on.
        """
        self._role, self._leaving = role, leaving

    def move_requests(self) -> None:
        """End every live request with `Moved`, behind the tokens that have arrived."""
        for stream in self._streams.values():
            stream.put_nowait(Moved(f"worker {self.where.worker_id} is leaving"))

    async def close(self) -> None:
        """End the session; live requests fail with WorkerLost."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._up = False
        self._fail_streams("the gateway closed the session")

    async def generate(self, submission: pb.Submission) -> AsyncGenerator[TokenDelta, None]:
        """Submit a request and stream its tokens; closing the iterator aborts it.

        Raises:
            WorkerLost: the session broke; what was yielded before remains true.
            Moved: the worker leaves; likewise.
            TwinflowError: what the worker reports.
        """
        if not self._up:
            raise Unavailable(f"worker {self.where.worker_id} is not connected: {self._problem}")
        key = (submission.request_id, submission.attempt)
        stream = self._streams[key] = asyncio.Queue()
        self._outgoing.put_nowait(pb.AttachRequest(submit=submission))
        # The worker keeps the deadline; this is for one that forgets.
        late = DeadlineExceeded(
            f"worker {self.where.worker_id} did not end the request at its deadline"
        )
        patience = submission.deadline_ms / 1000 + self._config.silence_limit_s
        timer = asyncio.get_running_loop().call_later(patience, stream.put_nowait, late)
        finished = False
        try:
            while not finished:
                item = await stream.get()
                if isinstance(item, TwinflowError):
                    finished = item is not late and not isinstance(item, Moved)
                    raise item
                finished = item.finish_reason is not None
                yield item
        finally:
            timer.cancel()
            del self._streams[key]
            if not finished and self._up:
                abort = pb.Abort(request_id=key[0], attempt=key[1])
                self._outgoing.put_nowait(pb.AttachRequest(abort=abort))

    async def _run(self) -> None:
        """Connect, serve the session, and again when it is lost."""
        while True:
            channel = open_channel(self.where.address, self._config.tls)
            try:
                await self._session(rpc.WorkerStub(channel))
            except Exception as error:  # noqa: BLE001 - whatever it was, the requests must hear it
                self._down(error)
            finally:
                await channel.close()
            await asyncio.sleep(self._config.reconnect_s)

    async def _session(self, stub: rpc.WorkerStub) -> None:
        description = await stub.Describe(
            pb.DescribeRequest(), metadata=self._metadata, timeout=self._config.describe_timeout_s
        )
        self._check_identity(description)
        self.description = description
        self._ranks = tuple(RankView(rank.address, tuple(rank.parts)) for rank in description.ranks)
        self._outgoing = asyncio.Queue()
        call = stub.Attach(metadata=self._metadata)
        parts = [
            asyncio.create_task(part)
            for part in (self._listen(call), self._send(call), self._watch())
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in parts:
                if part.done():
                    part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            call.cancel()

    def _check_identity(self, found: pb.DescribeResponse) -> None:
        """A worker may come back in a new life, but only as itself and with the same model."""
        if found.worker_id != self.where.worker_id:
            raise Unavailable(
                f"{self.where.address} is worker {found.worker_id}, not {self.where.worker_id}"
            )
        if self.where.epoch and found.epoch != self.where.epoch:
            raise Unavailable(
                f"it is in its life {found.epoch}, and life {self.where.epoch} is wanted"
            )
        if self.description is not None and difference(self.description, found):
            raise Unavailable("it came back with another model or KV layout: restart the gateway")
        reference = self._reference or found
        if problem := difference(reference, found):
            raise Unavailable(problem)
        if found.max_model_len < reference.max_model_len:
            raise Unavailable(
                f"its context of {found.max_model_len} tokens is shorter than the deployment's "
                f"{reference.max_model_len}"
            )

    async def _listen(self, call: _Call) -> None:
        """Take the worker's messages until there are no more."""
        while isinstance(message := await call.read(), pb.AttachResponse):
            self._num_messages += 1
            self._receive(message)
        raise Unavailable("the worker ended the session")

    async def _send(self, call: _Call) -> None:
        """Send what there is to send, until cancelled."""
        while True:
            await call.write(await self._outgoing.get())

    async def _watch(self) -> None:
        """Give up a worker that is silent.

        Several looks without a message between them: if this process itself stood still, messages
        are there by the second one.
        """
        silent_looks = 0
        while silent_looks < _LOOKS:
            before = self._num_messages
            await asyncio.sleep(self._config.silence_limit_s / _LOOKS)
            silent_looks = silent_looks + 1 if self._num_messages == before else 0
        raise Unavailable(f"no sign of life for {self._config.silence_limit_s:g} s")

    def _receive(self, message: pb.AttachResponse) -> None:
        if message.HasField("stats"):
            self._stats = message.stats
            self._on_stats(self.where.worker_id, self.role, message.stats)
        if not self._up:
            self._up, self._lost_at, self._gone = True, None, False
            self._on_change(self)
        for output in message.outputs:
            stream = self._streams.get((output.request_id, output.attempt))
            if stream is not None:
                stream.put_nowait(_delta_or_error(output))

    def _down(self, error: Exception) -> None:
        problem = _describe(error)
        was_up, is_news = self._up, self._up or problem != self._problem
        self._up, self._problem = False, problem
        self._fail_streams(problem)
        if is_news:
            structlog.get_logger().warning(
                "worker is not available", worker=self.where.worker_id, problem=problem, error=error
            )
        now = asyncio.get_running_loop().time()
        if was_up:
            self._lost_at = now
            self._on_change(self)
        elif (
            self._lost_at is not None
            and not self._gone
            and now - self._lost_at >= self._config.gone_after_s
        ):
            self._gone = True
            self._on_change(self)

    def _fail_streams(self, problem: str) -> None:
        for stream in self._streams.values():
            stream.put_nowait(WorkerLost(f"worker {self.where.worker_id} was lost: {problem}"))


def _delta_or_error(output: pb.RequestOutput) -> TokenDelta | TwinflowError:
    try:
        return delta_from_pb(output)
    except TwinflowError as error:
        return error


def _lanes(found: pb.LaneInfo, failure: str) -> LaneInfo:
    """How a worker divides its device now; `failure` says why it does not any more."""
    if failure:
        return LaneInfo(found.wanted, NONE, reason=failure)
    return LaneInfo(found.wanted, found.backend, found.description, found.reason)


def _describe(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        # Not in gRPC's words, which name addresses: whoever asks for readiness reads this.
        return f"the connection failed ({error.code().name.lower()})"
    return str(error) or type(error).__name__
