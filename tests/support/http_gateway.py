"""A real HTTP gateway on a loopback port, in a thread with an event loop of its own.

What stands behind it is a `FakeBackend`; what stands before it are real sockets, so that tests may
block. Leaving the context stops the server and demands that nothing is left.
"""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import uvloop
from prometheus_client import CollectorRegistry
from tests.support.fake_backend import Behaviour, FakeBackend, fake_model
from tests.support.fake_text import ByteCodec

from twinflow.cluster.dispatch.history import History
from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.http.app import create_app
from twinflow.cluster.gateway.http.config import HttpConfig
from twinflow.cluster.gateway.http.dependencies import HttpDependencies
from twinflow.cluster.gateway.http.protocol import GuardedProtocol
from twinflow.cluster.gateway.http.server import HttpServer
from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.text_pipeline import TextPipeline

# Long enough for a loaded machine; nothing waits that long when all is well.
PATIENCE_S = 20.0
CONFIG = HttpConfig(port=0, shutdown_s=5.0)


def chat_body(content: object = "hi", **fields: object) -> dict[str, object]:
    """A request for a chat completion."""
    message = {"role": "user", "content": content}
    return {"model": "tiny", "messages": [message], **fields}


def completion_body(prompt: object = "hi", **fields: object) -> dict[str, object]:
    """A request for a completion."""
    return {"model": "tiny", "prompt": prompt, **fields}


def _new_client() -> httpx.Client:
    headers = {"connection": "close"}
    return httpx.Client(timeout=PATIENCE_S, trust_env=False, verify=False, headers=headers)


@dataclass
class HttpGateway:
    """A running gateway.

    Attributes:
        backend: what is behind it.
        registry: its metrics.
        history: what its dashboard tells of requests; tests write it.
        metrics: counts; there once it has started.
        config: its limits; `port` is the real one.
    """

    backend: FakeBackend
    config: HttpConfig = CONFIG
    keys: Sequence[str] = ()
    client: httpx.Client = field(default_factory=_new_client)
    codec: ByteCodec = field(default_factory=ByteCodec)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    history: History = field(default_factory=lambda: History(time.monotonic))
    _started: threading.Event = field(default_factory=threading.Event)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _error: BaseException | None = None
    server: HttpServer | None = None
    metrics: GatewayMetrics = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config.port}"

    @property
    def server_connections(self) -> int:
        """Connections that the server has open."""
        assert self.server is not None
        return self.server.connections

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request over a connection of its own; safe to call from several threads."""
        return self.client.request(method, self.url + path, **options)

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def stream(self, path: str, body: dict[str, object]) -> "Events":
        """Run a stream to its end."""
        return Events(self.post(path, body | {"stream": True}))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.config.port), timeout=PATIENCE_S)

    def exchange(self, request: bytes) -> bytes:
        """Send bytes; what comes back until the server closes."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)

    def metric(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, {"model_name": "tiny", **labels})
        return 0.0 if value is None else value

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, what)

    def wait_until_idle(self) -> None:
        """Wait until no sequence is left, and check the books."""
        backend = self.backend
        wait_until(lambda: not backend.live and not backend.reserved, "sequences to end")
        wait_until(lambda: self.metric("twinflow:requests_in_flight") == 0, "the books to close")
        backend.check_integrity()

    def run(self) -> None:
        """The thread: serve until told to stop."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
                self._error = error
                self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.metrics = GatewayMetrics(self.registry, "tiny")
        pipeline = TextPipeline(self.backend, self.codec, self.metrics)
        dependencies = HttpDependencies(
            pipeline=pipeline,
            backend=self.backend,
            registry=self.registry,
            authenticator=Authenticator(self.keys),
            config=self.config,
            history=lambda: self.history,
        )
        self.server = HttpServer(create_app(dependencies), self.config)
        await self.server.start()
        self.config = replace(self.config, port=self.server.port)
        self._started.set()
        await self._stopping.wait()
        await self.server.stop()

    def stand_still_once_idle(self, seconds: float) -> tuple[threading.Event, threading.Event]:
        """Once a connection has been answered, hold the loop up while it reads from its sockets.

        That is where uvloop runs timers before it looks for more to read.

        Returns:
            Set by the gateway when it stands still, and to be set when something has been sent;
            `seconds` later it goes on.
        """
        assert self.server is not None and self._loop is not None
        loop, connections = self._loop, self.server._server.server_state.connections
        standing, sent = threading.Event(), threading.Event()
        ours, theirs = socket.socketpair()

        def stand_still() -> None:
            loop.remove_reader(ours)
            standing.set()
            sent.wait(PATIENCE_S)
            time.sleep(seconds)
            ours.close()
            theirs.close()

        def look() -> None:
            guarded = (each for each in connections if isinstance(each, GuardedProtocol))
            if any(connection.timeout_keep_alive_task for connection in guarded):
                loop.add_reader(ours, stand_still)
                theirs.send(b"x")
            else:
                loop.call_soon(look)

        loop.call_soon_threadsafe(look)
        return standing, sent

    def begin_stop(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)


@contextmanager
def http_gateway(
    behaviour: Behaviour | None = None,
    *,
    config: HttpConfig = CONFIG,
    keys: Sequence[str] = (),
    max_model_len: int = 256,
) -> Iterator[HttpGateway]:
    """Run a gateway; afterwards every sequence and every connection must be gone."""
    gateway = HttpGateway(FakeBackend(behaviour, fake_model(max_model_len)), config, keys)
    thread = threading.Thread(target=gateway.run, name="gateway")
    thread.start()
    try:
        assert gateway._started.wait(PATIENCE_S), "the gateway did not start"
        if gateway._error is None:
            yield gateway
            gateway.wait_until_idle()
    finally:
        gateway.begin_stop()
        thread.join(PATIENCE_S)
        gateway.client.close()
    if gateway._error is not None:
        raise gateway._error
    assert not thread.is_alive(), "the gateway did not stop"
    assert gateway.server_connections == 0


class Events:
    """The server-sent events of a response, taken apart strictly."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.text = response.text
        if self.status != 200:
            self.data: list[Any] = []
            self.done = False
            return
        frames = self.text.split("\n\n")
        assert frames.pop() == "", "a stream ends with a whole frame"
        for frame in frames:
            assert re.fullmatch(r"data: [^\r\n]+", frame), frame
        payloads = [frame.removeprefix("data: ") for frame in frames]
        self.done = payloads[-1] == "[DONE]"
        self.data = [json.loads(payload) for payload in payloads if payload != "[DONE]"]

    def texts(self, index: int = 0) -> list[str]:
        """The pieces of text of one completion."""
        found = []
        for event in self.data:
            for choice in event.get("choices", ()):
                if choice["index"] == index:
                    found.append(choice.get("text", choice.get("delta", {}).get("content", "")))
        return found


def read_all(connection: socket.socket) -> bytes:
    """Everything until the end of the connection, a reset included."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def raw_post(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a POST that ends its connection; headers may be anything."""
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def status_of(response: bytes) -> int:
    """The status of a raw response; 0 if there is none."""
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", response)
    return int(match.group(1)) if match else 0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


def assert_openai_error(
    response: httpx.Response, status: int, code: str | None = None, param: str | None = None
) -> None:
    """Demand OpenAI's error object, complete and short."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and len(error["message"]) < 500
    assert isinstance(error["type"], str)
    if code is not None:
        assert error["code"] == code
    if param is not None:
        assert error["param"] == param
