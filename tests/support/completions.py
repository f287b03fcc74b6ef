"""A client of `/v1/completions` for many requests at once; believes nothing the server says.

An answer must be complete: in a stream, one reason to finish, then `[DONE]`, then nothing.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import numpy
from tests.support.deployments import Deployment
from tests.support.request_mixes import Ask

from twinflow.runtime.outputs import RequestOutput
from twinflow.runtime.sampling_params import SamplingParams

T = TypeVar("T")
X = TypeVar("X")

# Nothing takes that long when all is well.
REQUEST_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished completion, as far as it does not depend on when it was made.

    Attributes:
        token_ids: generated tokens.
        logprobs: of these tokens, if asked for.
        text: of these tokens.
        finish_reason: why it ended.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str

    @classmethod
    def of(cls, output: RequestOutput) -> "Answer":
        """The first completion of an offline request; the wire carries single precision."""
        completion = output.outputs[0]
        logprobs = tuple(float(numpy.float32(entry.logprob)) for entry in completion.logprobs)
        reason = completion.finish_reason.value
        return cls(completion.token_ids, logprobs, completion.text, reason)


class Refused(Exception):
    """The server answered with an error.

    Attributes:
        status: of the response.
        error: OpenAI's error object.
    """

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(status, error)
        self.status = status
        self.error = error


@dataclass(slots=True)
class _Parts:
    """What a stream has brought so far."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        assert "error" not in event, event
        for choice in event["choices"]:
            assert self.finish_reason is None, "more after the end"
            self.token_ids += choice["token_ids"]
            self.logprobs += _logprobs(choice)
            self.text += choice["text"]
            self.finish_reason = choice["finish_reason"]

    def answer(self) -> Answer:
        assert self.finish_reason is not None, "the stream did not say why it ended"
        return Answer(tuple(self.token_ids), tuple(self.logprobs), self.text, self.finish_reason)


class CompletionsClient:
    """Asks one deployment; a context manager.

    Args:
        deployment: ready.
        connections: most connections at a time.
    """

    def __init__(self, deployment: Deployment, connections: int = 32) -> None:
        self._model = deployment.model
        self._http = httpx.AsyncClient(
            base_url=deployment.http_url,
            timeout=REQUEST_S,
            trust_env=False,
            limits=httpx.Limits(max_connections=connections),
        )

    async def __aenter__(self) -> "CompletionsClient":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def whole(self, ask: Ask, **fields: object) -> Answer:
        """Ask for a whole answer.

        Raises:
            Refused: the server would not.
        """
        content = await self.raw(self.body(ask, fields))
        choice = content["choices"][0]
        return Answer(
            tuple(choice["token_ids"]),
            tuple(_logprobs(choice)),
            choice["text"],
            choice["finish_reason"],
        )

    async def raw(self, body: Mapping[str, object]) -> dict[str, Any]:
        """Post a body as it is.

        Raises:
            Refused: the server would not.
        """
        response = await self._http.post("/v1/completions", json=body)
        content: dict[str, Any] = response.json()
        if response.status_code != 200:
            raise Refused(response.status_code, content["error"])
        return content

    async def streamed(self, ask: Ask, **fields: object) -> Answer:
        """Ask for a stream and read it to its end.

        Raises:
            Refused: the server would not.
        """
        parts = _Parts()
        async for event in self.events(ask, **fields):
            parts.add(event)
        return parts.answer()

    async def events(self, ask: Ask, **fields: object) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, `[DONE]` checked and left out.

        Raises:
            Refused: the server would not.
        """
        body = self.body(ask, fields) | {"stream": True}
        done = False
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise Refused(response.status_code, json.loads(await response.aread())["error"])
            async for line in response.aiter_lines():
                if not line:
                    continue
                assert not done, f"{line!r} after [DONE]"
                data = line.removeprefix("data: ")
                done = data == "[DONE]"
                if not done:
                    yield json.loads(data)
        assert done, "the stream ended without [DONE]"

    def body(self, ask: Ask, fields: Mapping[str, object] | None = None) -> dict[str, object]:
        """A request body."""
        return {
            "model": self._model,
            "prompt": ask.prompt,
            "return_token_ids": True,
            **_fields(ask.params),
            **(fields or {}),
        }


def _logprobs(choice: Mapping[str, Any]) -> list[float]:
    logprobs: list[float] = choice["logprobs"]["token_logprobs"] if choice["logprobs"] else []
    return logprobs


def _fields(params: SamplingParams) -> dict[str, object]:
    """The parameters under their names in a request body."""
    names = (name for name in SamplingParams.__dataclass_fields__ if name != "logit_bias")
    values = {name: getattr(params, name) for name in names}
    values["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    return {name: value for name, value in values.items() if value is not None}


async def for_each(items: Sequence[X], work: Callable[[X], Awaitable[T]], at_once: int) -> list[T]:
    """Do the work for every item, so many at a time; results in the items' order.

    The first error cancels the others.
    """
    seats = asyncio.Semaphore(at_once)

    async def seated(item: X) -> T:
        async with seats:
            return await work(item)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(seated(item)) for item in items]
    return [task.result() for task in tasks]


async def read_stream(deployment: Deployment, ask: Ask, began: asyncio.Event) -> tuple[int, ...]:
    """Stream an answer; returns its tokens once it is complete. `began` is set from the first."""
    tokens: list[int] = []
    async with CompletionsClient(deployment) as client:
        async for event in client.events(ask):
            assert "error" not in event, event
            tokens += event["choices"][0]["token_ids"]
            began.set()
    return tuple(tokens)
