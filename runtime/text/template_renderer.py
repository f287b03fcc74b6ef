"""Renders chat templates for a server: in a process that can be killed, one request at a time.

A template comes with a model and is code; messages come from strangers. A rendering that takes too
long costs the process, which the next request starts again, and ends in an error for its own
request only. Text is bounded by what a context can hold: beyond the messages themselves, a template
may add four characters per token of context.
"""

import asyncio
from asyncio import Future
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from twinflow.protos.errors import (
    CheckpointError,
    InvalidRequest,
    Overloaded,
    TwinflowError,
    Unavailable,
)
from twinflow.runtime.checkpoint.json_file import shorten
from twinflow.runtime.text.chat_template import ChatTemplate, failed, refused
from twinflow.runtime.text.template_child import ChildFailed, TemplateChild
from twinflow.runtime.text.template_engine import Messages
from twinflow.runtime.text.template_wire import encode

_CHARS_PER_TOKEN = 4
# JSON spells a control character with six bytes; the rest is the frame's own.
_BYTES_PER_CHAR = 6
_FRAME_BYTES = 4096


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What rendering may take.

    Attributes:
        time_s: one rendering.
        start_s: starting the process and compiling the template.
        memory_bytes: address space of the process.
        waiting: requests in the queue.
        wait_s: time in the queue, rendering included.
    """

    time_s: float = 1.0
    start_s: float = 10.0
    memory_bytes: int = 512 << 20
    waiting: int = 256
    wait_s: float = 10.0


@dataclass(frozen=True, slots=True)
class _Job:
    """A conversation to render, and where its text goes.

    Attributes:
        frame: the request for the process.
        max_chars: characters that the text may have.
        text: the result; cancelled if nobody waits any more.
    """

    frame: bytes
    max_chars: int
    text: Future[str]


class TemplateRenderer:
    """Owns the rendering process from `start` to `close`.

    Args:
        template: from the model directory.
        max_model_len: tokens of context, which bound the text.
        limits: time, memory and queue.
        clock: what `strftime_now` in a template shows.
    """

    def __init__(
        self,
        template: ChatTemplate,
        max_model_len: int,
        limits: RenderLimits | None = None,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._template = template
        self._extra_chars = _CHARS_PER_TOKEN * max_model_len
        self._limits = limits or RenderLimits()
        self._clock = clock
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue(self._limits.waiting)
        self._child: TemplateChild | None = None
        self._server: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the rendering process, if it runs."""
        return self._child.pid if self._child is not None and self._child.alive else None

    async def start(self) -> None:
        """Start the process and compile the template.

        Raises:
            CheckpointError: the template cannot be compiled, or not in time.
        """
        try:
            await self._running_child()
        except Unavailable as error:
            raise CheckpointError(error.message) from error
        self._server = asyncio.create_task(self._serve(), name="chat-template")

    async def close(self) -> None:
        """End the process and fail what still waits; may be called twice."""
        server, self._server = self._server, None
        if server is not None:
            server.cancel()
            with suppress(asyncio.CancelledError):
                await server
        await self._drop_child()
        while not self._jobs.empty():
            _settle(self._jobs.get_nowait(), Unavailable("The server is shutting down."))

    async def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation; may be called concurrently.

        Args:
            messages: plain JSON values.
            add_generation_prompt: end with what starts the assistant's answer.

        Raises:
            InvalidRequest: the template refuses the messages, fails on them or exceeds a limit.
            Overloaded: the queue is full or slow.
            Unavailable: not started, closed, or no process can be started.
        """
        if self._server is None or self._server.done():
            raise Unavailable("Chat templates cannot be rendered now.")
        job = self._job(messages, add_generation_prompt)
        try:
            self._jobs.put_nowait(job)
            async with asyncio.timeout(self._limits.wait_s):
                return await job.text
        except (asyncio.QueueFull, TimeoutError) as error:
            raise Overloaded("Too many conversations wait for the chat template.") from error

    def _job(self, messages: Messages, add_generation_prompt: bool) -> _Job:
        request: dict[str, object] = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "now": self._clock().isoformat(),
        }
        try:
            max_chars = self._extra_chars + len(encode(request))
            frame = encode({**request, "max_chars": max_chars})
        except (UnicodeEncodeError, RecursionError) as error:
            raise InvalidRequest("The messages are not valid Unicode JSON.", "messages") from error
        return _Job(frame, max_chars, asyncio.get_running_loop().create_future())

    async def _serve(self) -> None:
        while True:
            job = await self._jobs.get()
            if job.text.done():
                continue
            try:
                _settle(job, await self._render(job))
            except TwinflowError as error:
                _settle(job, error)
            except asyncio.CancelledError:
                _settle(job, Unavailable("The server is shutting down."))
                raise

    async def _render(self, job: _Job) -> str:
        child = await self._running_child()
        try:
            reply = await child.exchange(
                job.frame,
                timeout_s=self._limits.time_s,
                max_reply=_BYTES_PER_CHAR * job.max_chars + _FRAME_BYTES,
            )
        except TimeoutError as error:
            await self._drop_child()
            raise failed(f"it took more than {self._limits.time_s:g} s") from error
        except ChildFailed as error:
            await self._drop_child()
            raise failed("its process ended") from error
        match reply:
            case {"text": str(text)}:
                return text
            case {"refusal": str(reason)}:
                raise refused(reason)
        raise failed(shorten(str(reply.get("error"))))

    async def _running_child(self) -> TemplateChild:
        """The process, started if there is none.

        Raises:
            CheckpointError: the template cannot be compiled.
            Unavailable: no process could be started.
        """
        if self._child is not None and self._child.alive:
            return self._child
        await self._drop_child()
        settings = {
            "source": self._template.source,
            "special_tokens": dict(self._template.special_tokens),
            "memory_bytes": self._limits.memory_bytes,
            "time_s": self._limits.time_s,
        }
        try:
            self._child = await TemplateChild.start()
            reply = await self._child.exchange(
                encode(settings), timeout_s=self._limits.start_s, max_reply=_FRAME_BYTES
            )
        except (OSError, TimeoutError, ChildFailed) as error:
            await self._drop_child()
            raise Unavailable(
                f"The chat template was not compiled within {self._limits.start_s:g} s and "
                f"{self._limits.memory_bytes >> 20} MiB."
            ) from error
        if reply:
            await self._drop_child()
            reason = shorten(str(reply.get("error")))
            raise CheckpointError(f"The chat template cannot be compiled: {reason}")
        return self._child

    async def _drop_child(self) -> None:
        if self._child is not None:
            await self._child.kill()
            self._child = None


def _settle(job: _Job, outcome: str | TwinflowError) -> None:
    """Give a job its outcome, unless nobody waits for it any more."""
    if job.text.done():
        return
    if isinstance(outcome, str):
        job.text.set_result(outcome)
    else:
        job.text.set_exception(outcome)
