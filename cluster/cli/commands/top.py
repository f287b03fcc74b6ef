"""`twinflow top`: a running server's workers, load, latencies and latest requests, live.

Reads what the page at /dashboard reads, and like it knows nothing that other clients could not
know. It changes nothing, and loads the server with three small answers for each picture.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twinflow.cluster.cli.http_server import Server, add_server_flags, ask, server_of
from twinflow.cluster.cli.parser import Commands, Invocation
from twinflow.cluster.cli.scrapes import DRAINING, UP, Between, Scrape, state_of
from twinflow.cluster.cli.tables import aligned
from twinflow.protos.errors import ConfigError, TwinflowError

EPILOG = """\
Latencies and rates are of the last half minute, or of the time since the command began.

examples:
  twinflow top
  twinflow top --interval 5 --requests 20
  twinflow top --once --url http://gpu-box:8000 --api-key "$KEY"
"""

DEFAULT_INTERVAL_S = 1.0
DEFAULT_REQUESTS = 10
# What rates and latencies are taken over.
WINDOW_S = 30.0
_CLEAR = "\x1b[H\x1b[2J"
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
_KV, _BUSY = "vllm:kv_cache_usage_perc", "twinflow:worker_busy_seconds_total"
_PROMPT = "twinflow:worker_prompt_tokens_total"
_GENERATED = "twinflow:worker_generation_tokens_total"
_WORKER_METRICS = (UP, DRAINING, _RUNNING, _WAITING, _KV)


@dataclass(frozen=True, slots=True)
class Screen:
    """Where pictures go.

    Attributes:
        write: shows text.
        rewrites: each picture replaces the one before.
    """

    write: Callable[[str], object]
    rewrites: bool

    def show(self, lines: Sequence[str]) -> None:
        """Show a picture."""
        self.write((_CLEAR if self.rewrites else "") + "\n".join(lines) + "\n")


class Monitor:
    """Pictures of a server, one after another.

    Args:
        server: which one.
        clock: seconds, monotonic.
        num_requests: how many of the latest requests are shown.
    """

    def __init__(self, server: Server, clock: Callable[[], float], num_requests: int) -> None:
        self._server = server
        self._clock = clock
        self._num_requests = num_requests
        self._scrapes: deque[Scrape] = deque()

    def look(self) -> None:
        """Read the metrics once more.

        Raises:
            ServerError: the server cannot be reached or answers with an error.
        """
        now = Scrape.of(ask(self._server, "/metrics"), self._clock())
        while self._scrapes and now.at - self._scrapes[0].at > WINDOW_S:
            self._scrapes.popleft()
        self._scrapes.append(now)

    def picture(self) -> list[str]:
        """What was read last, and what happened since the window began.

        Raises:
            ServerError: see `look`.
        """
        between = Between(self._scrapes[0], self._scrapes[-1])
        requests = json.loads(ask(self._server, "/dashboard/requests"))["requests"]
        return [
            f"{self._server.url}   {self._readiness()}",
            "",
            *load_lines(between),
            "",
            *worker_lines(between),
            "",
            *request_lines(requests[: self._num_requests]),
        ]

    def _readiness(self) -> str:
        status, body = self._server.get("/ready")
        try:
            reason = json.loads(body)["reason"]
        except (ValueError, KeyError, TypeError):  # not a readiness report
            reason = f"HTTP {status}"
        return f"not ready: {reason}" if reason else "ready"


def add_to(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "top",
        help="show workers, load, latencies and requests, live",
        description="Show a server's workers, load, latencies and latest requests, live. "
        "Ctrl-C ends it.",
        epilog=EPILOG,
    )
    add_server_flags(parser)
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        help=f"time between two pictures [default: {DEFAULT_INTERVAL_S:g}]",
    )
    parser.add_argument(
        "--requests",
        metavar="N",
        help=f"how many of the latest requests to show [default: {DEFAULT_REQUESTS}]",
    )
    parser.add_argument("--once", action="store_true", help="show one picture and end")
    parser.runs(run)


def run(invocation: Invocation) -> int:
    """Show pictures until it is interrupted.

    Raises:
        ConfigError: an argument is wrong.
        ServerError: the server cannot be reached or answers with an error, at first.
    """
    server = server_of(invocation)
    interval_s = _number(invocation, "interval", DEFAULT_INTERVAL_S, 0.1)
    num_requests = int(_number(invocation, "requests", DEFAULT_REQUESTS, 0))
    out, once = invocation.stdout, bool(invocation.given.get("once"))
    monitor = Monitor(server, time.monotonic, num_requests)
    screen = Screen(out.write, rewrites=out.isatty() and not once)
    monitor.look()
    while True:
        time.sleep(interval_s)
        screen.show(_next_picture(monitor, once))
        out.flush()
        if once:
            return 0


def _next_picture(monitor: Monitor, once: bool) -> list[str]:
    """The next picture; a server that is away for a while does not end the command."""
    try:
        monitor.look()
        return monitor.picture()
    except TwinflowError as error:
        if once:
            raise
        return [str(error)]


def load_lines(between: Between) -> list[str]:
    """Requests and tokens of the whole server, and how long they took."""
    last = between.last
    failed = between.grown("twinflow:request_failures_total") or 0.0
    rejected = between.grown("vllm:admission_rejections_total") or 0.0
    rows = [
        ("", "p50 ms", "p90 ms", "p99 ms"),
        _latency(between, "time to first token", "vllm:time_to_first_token_seconds"),
        _latency(between, "time between tokens", "vllm:inter_token_latency_seconds"),
    ]
    return [
        f"requests  {_count(last.total('twinflow:requests_in_flight'))} in flight, "
        f"{failed:.0f} failed, {rejected:.0f} rejected",
        f"tokens/s  {_count(between.per_second('vllm:prompt_tokens_total'))} of prompts, "
        f"{_count(between.per_second('vllm:generation_tokens_total'))} generated",
        *aligned(rows, 1),
    ]


def worker_lines(between: Between) -> list[str]:
    """A row for each worker."""
    rows = [
        ("role", "worker", "state", "running", "waiting", "KV", "busy", "prompt/s", "output/s"),
    ]
    for (role, worker), values in between.last.by_worker(_WORKER_METRICS).items():
        if not values.get(UP):
            rows.append((role, worker, state_of(values), *"------"))
            continue
        rows.append(
            (
                role,
                worker,
                state_of(values),
                _count(values.get(_RUNNING)),
                _count(values.get(_WAITING)),
                _share(values.get(_KV)),
                _share(between.per_second(_BUSY, worker=worker)),
                _count(between.per_second(_PROMPT, worker=worker)),
                _count(between.per_second(_GENERATED, worker=worker)),
            )
        )
    return aligned(rows, 3)


def request_lines(requests: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each request, as /dashboard/requests tells of it."""
    if not requests:
        return ["no request yet"]
    rows = [("request", "state", "workers", "age s", "prompt", "output", "first token ms")]
    for request in requests:
        latest = request["attempts"][-1] if request["attempts"] else {"prefill": "", "decode": "-"}
        first_s = request["first_token_s"]
        rows.append(
            (
                request["id"],
                request["state"],
                "→".join(filter(None, (latest["prefill"], latest["decode"]))),
                f"{request['age_s']:.1f}",
                str(request["prompt_tokens"]),
                str(request["output_tokens"]),
                "-" if first_s is None else f"{first_s * 1e3:.0f}",
            )
        )
    return aligned(rows, 3)


def _latency(between: Between, what: str, name: str) -> tuple[str, ...]:
    found = (between.quantile(name, share) for share in (0.5, 0.9, 0.99))
    return (what, *("-" if value is None else f"{value * 1e3:.0f}" for value in found))


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(invocation: Invocation, name: str, default: float, least: float) -> float:
    text = invocation.text(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < 1e6:
        raise ConfigError(f"--{name} {text!r}: must be a number of at least {least:g}")
    return value
