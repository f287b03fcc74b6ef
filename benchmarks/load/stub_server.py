"""A stub OpenAI server of known latency, for calibrating the generator. It generates nothing.

    python -m benchmarks.load.stub_server [--freeze-after N]

Each "model" is a behaviour, so that one process serves all of them:

    steady       first token after 20 ms, 16 tokens 2 ms apart, role and first token in one chunk
    role-first   the same, but a chunk that only names the role comes at once
    error-frame  an error frame after 3 tokens
    cut          the connection is closed after 3 tokens
    no-done      a proper end without [DONE]
    reject       429 with Retry-After

Token i is written at an absolute time, request + 20 ms + 2 ms · i, so that timer errors do not add
up; what the timers did get wrong is kept and told by `GET /truth`: for each request id the clock
readings (monotonic, the same for all processes) at receipt and at each write. With --freeze-after
the whole process freezes for 2 s when the N-th request arrives, as a stalled server would. It
runs until its standard input ends.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import uvloop

TTFT_S = 0.020
ITL_S = 0.002
TOKENS = 16
FREEZE_S = 2.0
BROKEN_AFTER = 3
MODELS = ("steady", "role-first", "error-frame", "cut", "no-done", "reject")

_HEADER_LIMIT = 65536


@dataclass(frozen=True, slots=True)
class StubConfig:
    """Where and how to serve.

    Attributes:
        host: address to bind.
        port: port to bind; 0 for any free one.
        freeze_after: freeze when this many completions have been asked for; 0 for never.
        freeze_s: how long.
    """

    host: str = "127.0.0.1"
    port: int = 0
    freeze_after: int = 0
    freeze_s: float = FREEZE_S


@dataclass(slots=True)
class Truth:
    """When a request came and its tokens went out, in monotonic seconds."""

    received: float
    writes: list[float] = field(default_factory=list)


class StubServer:
    """Serves `MODELS`.

    Attributes:
        truths: what happened when, by request id.
    """

    def __init__(self, config: StubConfig) -> None:
        self._config = config
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.truths: dict[str, Truth] = {}

    async def start(self) -> int:
        """Bind; returns the port."""
        self._server = await asyncio.start_server(
            self._serve, self._config.host, self._config.port, limit=_HEADER_LIMIT, backlog=1024
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the listener and every connection, and wait for their handlers."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(ITL_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._one_request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client is gone, as clients do
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _one_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; False if the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (h.partition(":") for h in head[1:])
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            writer.write(self._document(path))
            return True
        truth = Truth(time.monotonic())
        self.truths[headers.get("x-request-id", str(len(self.truths)))] = truth
        if len(self.truths) == self._config.freeze_after:
            # Blocking the loop is the point: nothing is read, written or accepted meanwhile.
            time.sleep(self._config.freeze_s)
        return await self._complete(path, body, truth, writer)

    def _document(self, path: str) -> bytes:
        if path == "/v1/models":
            return _json_answer(200, {"data": [{"id": model} for model in MODELS]})
        if path == "/truth":
            told = {key: [truth.received, truth.writes] for key, truth in self.truths.items()}
            return _json_answer(200, told)
        return _json_answer(404, _error("no such path"))

    async def _complete(
        self, path: str, body: bytes, truth: Truth, writer: asyncio.StreamWriter
    ) -> bool:
        problem = _problem(body)
        if problem:
            writer.write(_json_answer(400, _error(problem)))
            return True
        request = json.loads(body)
        if request["model"] == "reject":
            writer.write(_json_answer(429, _error("try again"), "Retry-After: 1\r\n"))
            return True
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chat = path.endswith("/chat/completions")
        async for payload in self._stream(request["model"], request["max_tokens"], chat, truth):
            frame = b"data: " + payload + b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(frame), frame))
            await writer.drain()
        if request["model"] == "cut":
            return False
        writer.write(b"0\r\n\r\n")
        return True

    async def _stream(
        self, model: str, tokens: int, chat: bool, truth: Truth
    ) -> AsyncIterator[bytes]:
        broken = model in {"error-frame", "cut"}
        if model == "role-first" and chat:
            yield _payload({"role": "assistant", "content": ""}, chat)
        for index in range(min(tokens, BROKEN_AFTER) if broken else tokens):
            await _until(truth.received + TTFT_S + ITL_S * index)
            truth.writes.append(time.monotonic())
            role = {"role": "assistant"} if index == 0 and model != "role-first" else {}
            yield _payload({**role, "content": f"t{index} "}, chat)
        if model == "error-frame":
            yield json.dumps(_error("the worker died")).encode()
        if not broken:
            yield _payload({"content": ""}, chat, "length")
            yield json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode()
        if not broken and model != "no-done":
            yield b"[DONE]"


async def _until(when_s: float) -> None:
    while (left := when_s - time.monotonic()) > 0:
        await asyncio.sleep(left)


def _payload(delta: dict[str, str], chat: bool, finish_reason: str | None = None) -> bytes:
    content = {"delta": delta} if chat else {"text": delta["content"]}
    choice = {"index": 0, "finish_reason": finish_reason, **content}
    return json.dumps({"object": "chunk", "choices": [choice]}).encode()


def _problem(body: bytes) -> str:
    """What is wrong with a request; empty if nothing."""
    try:
        request = json.loads(body)
    except ValueError:
        return "the body is not JSON"
    tokens = request.get("max_tokens")
    if request.get("model") not in MODELS:
        return "no such model"
    if not isinstance(tokens, int) or tokens < 1:
        return "max_tokens must be an integer of at least 1"
    if request.get("temperature", 0) < 0:
        return "temperature must be at least 0"
    if request.get("prompt") is None and request.get("messages") is None:
        return "prompt or messages is needed"
    return ""


def _error(message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "stub", "param": None, "code": None}}


def _json_answer(status: int, document: object, extra: str = "") -> bytes:
    body = json.dumps(document).encode()
    head = (
        f"HTTP/1.1 {status} Stub\r\nContent-Type: application/json\r\n{extra}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _serve_until_stdin_closes(config: StubConfig) -> None:
    server = StubServer(config)
    sys.stdout.write(f"{await server.start()}\n")
    sys.stdout.flush()
    # The parent holds the other end: when it ends, however it ends, so does the stub.
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="Stub OpenAI server of known latency.")
    parser.add_argument("--port", type=int, default=0, help="0 for any free one")
    parser.add_argument("--freeze-after", type=int, default=0, help="freeze at the N-th request")
    args = parser.parse_args()
    uvloop.run(_serve_until_stdin_closes(StubConfig("127.0.0.1", args.port, args.freeze_after)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
