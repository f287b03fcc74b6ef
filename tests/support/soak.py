"""A mix of good, bad and broken-off requests through both front doors, and how each must end."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from tests.support.completions import CompletionsClient, Refused
from tests.support.request_mixes import Ask

from twinflow import AsyncClient
from twinflow.cluster.client import CallOptions
from twinflow.protos.errors import ClientError


class Door(Enum):
    """How a request is sent and answered."""

    HTTP_WHOLE = auto()
    HTTP_STREAM = auto()
    GRPC_WHOLE = auto()
    GRPC_STREAM = auto()


class Kind(Enum):
    """What is done to a request."""

    GOOD = auto()
    BAD = auto()
    HANG_UP = auto()


class Outcome(Enum):
    """How it ended for its client."""

    FINISHED = auto()
    REFUSED = auto()
    CANCELLED = auto()


@dataclass(frozen=True, slots=True)
class Job:
    """A request of the mix.

    Attributes:
        door: how it is sent.
        kind: what is done to it.
        ask: what it asks for.
        patience_s: when its client goes away, if it is to.
    """

    door: Door
    kind: Kind
    ask: Ask
    patience_s: float

    def allows(self, outcome: Outcome) -> bool:
        """Whether it may end so; a client that goes away may be too late."""
        match self.kind:
            case Kind.GOOD:
                return outcome is Outcome.FINISHED
            case Kind.BAD:
                return outcome is Outcome.REFUSED
            case Kind.HANG_UP:
                return outcome in (Outcome.FINISHED, Outcome.CANCELLED)


@dataclass(frozen=True, slots=True)
class MixShares:
    """Shares of the requests.

    Attributes:
        bad: that no server should serve.
        hang_up: whose client goes away.
        longest_patience_s: of such a client.
    """

    bad: float = 0.05
    hang_up: float = 0.1
    longest_patience_s: float = 0.2


def plan_jobs(asks: Sequence[Ask], shares: MixShares, seed: int) -> list[Job]:
    """A job for every ask, in random order of doors and kinds."""
    rng = random.Random(seed)
    num_bad, num_hang_up = int(shares.bad * len(asks)), int(shares.hang_up * len(asks))
    kinds = [Kind.BAD] * num_bad + [Kind.HANG_UP] * num_hang_up
    kinds += [Kind.GOOD] * (len(asks) - len(kinds))
    rng.shuffle(kinds)
    return [
        Job(rng.choice(list(Door)), kind, ask, rng.uniform(0.0, shares.longest_patience_s))
        for kind, ask in zip(kinds, asks, strict=True)
    ]


class Clients:
    """Does jobs.

    Args:
        http: client of the HTTP door.
        grpc: client of the gRPC door.
        vocab_size: a token that the model does not have.
    """

    def __init__(self, http: CompletionsClient, grpc: AsyncClient, vocab_size: int) -> None:
        self._http = http
        self._grpc = grpc
        self._vocab_size = vocab_size

    async def run(self, job: Job) -> Outcome:
        """Do a job; an end that is none of the outcomes is an error."""
        match job.kind:
            case Kind.GOOD:
                await self._ask(job.door, job.ask)
                return Outcome.FINISHED
            case Kind.BAD:
                return await self._ask_badly(job)
            case Kind.HANG_UP:
                try:
                    async with asyncio.timeout(job.patience_s):
                        await self._ask(job.door, job.ask)
                except TimeoutError:
                    return Outcome.CANCELLED
                return Outcome.FINISHED

    async def _ask(self, door: Door, ask: Ask, **fields: object) -> None:
        options = CallOptions(**fields)  # type: ignore[arg-type]
        match door:
            case Door.HTTP_WHOLE:
                await self._http.whole(ask, **fields)
            case Door.HTTP_STREAM:
                await self._http.streamed(ask, **fields)
            case Door.GRPC_WHOLE:
                await self._grpc.generate(token_ids=ask.prompt, params=ask.params, options=options)
            case Door.GRPC_STREAM:
                await self._read_grpc_stream(ask, options)

    async def _read_grpc_stream(self, ask: Ask, options: CallOptions) -> None:
        """Read a stream to its end; the client checks that it has one."""
        stream = self._grpc.stream(token_ids=ask.prompt, params=ask.params, options=options)
        ends = 0
        try:
            async for chunk in stream:
                assert not ends, "more after the end"
                ends += chunk.finish_reason is not None
        finally:
            await stream.aclose()
        assert ends == 1, "the stream did not say why it ended"

    async def _ask_badly(self, job: Job) -> Outcome:
        """Ask in one of the ways that only the server can see through."""
        ask, fields = job.ask, {}
        match len(ask.prompt) % 3:
            case 0:
                fields = {"model": "another"}
            case 1:
                ask = replace(ask, prompt=(*ask.prompt, self._vocab_size))
            case 2:
                ask = replace(ask, prompt=ask.prompt * 1000)
        try:
            await self._ask(job.door, ask, **fields)
        except Refused as refusal:
            assert 400 <= refusal.status < 500, refusal
            return Outcome.REFUSED
        except ClientError:
            return Outcome.REFUSED
        raise AssertionError(f"served a bad request: {job}")
