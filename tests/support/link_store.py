"""A rendezvous store that several test processes share: a socket in the place of gRPC.

The server answers one JSON line per connection from a `StoreDirectory`.
"""

import json
import socket
import socketserver
import threading
from collections.abc import Sequence
from typing import Any

from twinflow.parallel.links.config import LinkPeer
from twinflow.parallel.links.store import StoreDirectory
from twinflow.protos.errors import LinkError

_CALL_S = 30.0


class StoreServer:
    """Serves a directory on a port of the loopback interface until it is closed."""

    def __init__(self, directory: StoreDirectory) -> None:
        outer = directory

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                request = json.loads(self.rfile.readline())
                self.wfile.write(json.dumps(_answer(outer, request)).encode() + b"\n")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _answer(directory: StoreDirectory, request: dict[str, Any]) -> dict[str, Any]:
    try:
        peer = LinkPeer(request["caller"], request["epoch"])
        store = directory.find(request["link_id"], peer, timeout_s=5.0)
        match request["op"]:
            case "set":
                store.set(request["key"], bytes.fromhex(request["value"]))
                return {}
            case "get":
                value = store.get(request["key"], request["timeout_s"])
                return {"value": None if value is None else value.hex()}
            case "check":
                return {"value": store.check(request["keys"])}
            case other:
                return {"error": f"unknown operation {other}"}
    except LinkError as error:
        return {"error": str(error)}


class RemoteStore:
    """The store of one link as its peer sees it."""

    def __init__(self, port: int, link_id: str, caller: LinkPeer) -> None:
        self._port = port
        self._fixed = {"link_id": link_id, "caller": caller.worker_id, "epoch": caller.epoch}

    def set(self, key: str, value: bytes) -> None:
        self._call(op="set", key=key, value=value.hex())

    def get(self, key: str, timeout_s: float) -> bytes | None:
        value = self._call(op="get", key=key, timeout_s=timeout_s)["value"]
        return None if value is None else bytes.fromhex(value)

    def check(self, keys: Sequence[str]) -> bool:
        return bool(self._call(op="check", keys=list(keys))["value"])

    def add(self, key: str, amount: int) -> int:
        raise LinkError(f"gloo does not add ({key})")

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        raise LinkError(f"gloo does not compare ({key})")

    def delete(self, key: str) -> bool:
        raise LinkError(f"gloo does not delete ({key})")

    def _call(self, **request: object) -> dict[str, Any]:
        with socket.create_connection(("127.0.0.1", self._port), timeout=_CALL_S) as connection:
            connection.sendall(json.dumps({**self._fixed, **request}).encode() + b"\n")
            with connection.makefile("rb") as reply:
                answer: dict[str, Any] = json.loads(reply.readline())
        if "error" in answer:
            raise LinkError(answer["error"])
        return answer
