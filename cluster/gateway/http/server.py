"""Listens: uvicorn inside a running event loop, without its signal handlers and its logging."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from fastapi import FastAPI
from uvicorn import Config, Server

from twinflow.cluster.gateway.http.config import HttpConfig
from twinflow.cluster.gateway.http.protocol import GuardedProtocol
from twinflow.protos.errors import ConfigError, DeadlineExceeded

_START_TIMEOUT_S = 10.0
_POLL_S = 0.01


class _QuietServer(Server):
    """Leaves signals to the process that it is part of."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """One listening socket with an application behind it.

    Args:
        app: what `create_app` returns.
        config: where to listen, and limits.
    """

    def __init__(self, app: FastAPI, config: HttpConfig) -> None:
        self._config = config
        protocol = partial(GuardedProtocol, config)
        self._server = _QuietServer(
            Config(
                app,
                http=cast(type[asyncio.Protocol], protocol),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                # Annotated as whole seconds, but only ever handed on to asyncio.
                timeout_keep_alive=cast(Any, config.keep_alive_s),
                timeout_graceful_shutdown=cast(Any, config.shutdown_s),
            )
        )
        self._socket: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; after `start`."""
        if self._socket is None:
            raise RuntimeError("the server is not started")
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._server.server_state.connections)

    async def start(self) -> None:
        """Listen; returns when connections are accepted.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self._socket = _listen(self._config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                while not self._server.started:
                    if self._serving.done():
                        self._serving.result()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            self._serving.cancel()
            raise DeadlineExceeded(
                f"The HTTP server did not start within {_START_TIMEOUT_S:g} s."
            ) from None

    async def stop(self) -> None:
        """Stop listening, let requests in flight finish within `shutdown_s`, then cut them off."""
        if self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        self._serving = None
        # What was cut off has been told to end, and may take as long as a slow reader may.
        remaining = self._server.server_state.tasks
        if remaining:
            await asyncio.wait(remaining, timeout=self._config.write_timeout_s)


def _listen(config: HttpConfig) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((address[0], address[1]), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port} (--host, --port): {error.strerror}"
        ) from error
