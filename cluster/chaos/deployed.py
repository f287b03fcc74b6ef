"""A deployment that is started to be broken: its processes, its doors, orders for its workers."""

import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from twinflow.cluster.chaos import processes
from twinflow.cluster.chaos.scrape import Scrape
from twinflow.cluster.chaos.stream import Endpoint, look
from twinflow.cluster.client.admin import Admin
from twinflow.protos.errors import ServerError

_START_S = 180.0
_STOP_S = 60.0
_ASK_S = 15.0


class Deployed:
    """A running `twinflow serve` of plain processes.

    Args:
        given: settings of `twinflow serve` by name, an admin token among them.
        directory: for orders to its workers.
        log: what it writes is added there.

    Raises:
        ServerError: it did not start, and what it said.
    """

    def __init__(self, given: Mapping[str, object], directory: Path, log: Path) -> None:
        self.orders = directory / "orders"
        shutil.rmtree(self.orders, ignore_errors=True)
        self.orders.mkdir(parents=True)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._seen: dict[int, str] = {}
        settings = {**given, "fault_points": str(self.orders)}
        with log.open("ab") as written:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "twinflow.cluster.chaos.served"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                text=True,
                start_new_session=True,
            )
        if self._process.stdin is None:
            raise RuntimeError("there is no way to tell it what to serve")
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, name="chaos-serve", daemon=True)
        self._reader.start()
        try:
            ready = self._await_ready()
        except BaseException:  # whatever it is, nothing of it may stay
            self.kill()
            raise
        self.model = str(ready["model"])
        host, _, port = str(ready["http_url"]).removeprefix("http://").rpartition(":")
        keys = settings.get("api_key")
        key = str(keys[0]) if isinstance(keys, list) and keys else ""
        self.endpoint = Endpoint(host.strip("[]"), int(port), key)
        tokens = settings["admin_token"]
        token = str(tokens[0]) if isinstance(tokens, list) else str(tokens)
        self._door = (str(ready["grpc_target"]), token)

    def open_admin(self) -> Admin:
        """Its operator's door; whoever opens it closes it."""
        target, token = self._door
        return Admin(target, token=token)

    @property
    def pid(self) -> int:
        """The command itself."""
        return self._process.pid

    def pids(self) -> dict[str, int]:
        """The services' processes, by name."""
        found = processes.family(self.pid)
        self._seen |= {process.pid: process.name or "serve" for process in found.values()}
        return {process.name: process.pid for process in found.values() if process.name}

    def left(self) -> list[str]:
        """What still runs of everything that was seen of it."""
        return [f"{name} ({pid})" for pid, name in self._seen.items() if processes.is_alive(pid)]

    def scrape(self) -> Scrape | None:
        """Its metrics now; None if it does not answer."""
        answer = look(self.endpoint, "/metrics", patience_s=_ASK_S, clock=time.time, limit=None)
        return Scrape.parse(answer.detail) if answer.status == 200 else None

    def wait_ended(self, timeout_s: float) -> int | None:
        """Wait for the command to end; returns its exit status, or None if it goes on."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> list[str]:
        """End it in good order; returns what was left of it, which is killed."""
        self.pids()
        processes.send(self.pid, signal.SIGINT)
        self.wait_ended(_STOP_S)
        left = self.left()
        self.kill()
        return left

    def kill(self) -> None:
        """End whatever is left of it."""
        with suppress(OSError):
            self.pids()
        for pid in self._seen:
            processes.send(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _await_ready(self) -> dict[str, Any]:
        said = ""
        end = time.monotonic() + _START_S
        while (left_s := end - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left_s)
            except queue.Empty:
                break
            if line is None:
                raise ServerError(f"twinflow serve ended before it was ready: {said}")
            message = json.loads(line)
            if "ready" in message:
                ready: dict[str, Any] = message["ready"]
                return ready
            said = message["message"]
        raise ServerError(f"twinflow serve was not ready within {_START_S:g} s: {said}")
