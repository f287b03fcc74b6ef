"""`twinflow status`: what a running server says about itself, as a table.

Asks the same endpoints as a load balancer and a metrics scraper would; it knows nothing that they
could not know.
"""

import http.client
import json
from collections.abc import Iterable, Mapping

from twinflow.cluster.cli.http_server import (
    Server,
    add_server_flags,
    ask,
    error_message,
    server_of,
)
from twinflow.cluster.cli.parser import Commands, Invocation
from twinflow.cluster.cli.scrapes import DRAINING, UP, Scrape, state_of
from twinflow.cluster.cli.tables import aligned

EPILOG = """\
exit status:
  0 if every pair of workers serves requests, 1 if not.

examples:
  twinflow status
  twinflow status --url http://gpu-box:8000 --api-key "$KEY"
"""

# Column heading, metric with labels `role` and `worker`, how a value is written.
COLUMNS = (
    ("ranks", "twinflow:worker_ranks", "{:.0f}"),
    ("running", "vllm:num_requests_running", "{:.0f}"),
    ("waiting", "vllm:num_requests_waiting", "{:.0f}"),
    ("KV used", "vllm:kv_cache_usage_perc", "{:.1%}"),
)


def add_to(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "status",
        help="show whether a server is ready, its workers and queues",
        description="Show whether a server is ready, which model it serves, and its workers.",
        epilog=EPILOG,
    )
    add_server_flags(parser)
    parser.runs(run)


def run(invocation: Invocation) -> int:
    """Print the table; 0 if the server is ready, 1 if it is not.

    Raises:
        ConfigError: an argument is wrong.
        ServerError: the server cannot be reached or answers with an error.
    """
    server = server_of(invocation)
    ready, lines = _readiness(server)
    lines += _models(server)
    lines += ["", *worker_table(ask(server, "/metrics"))]
    invocation.stdout.write("\n".join([f"server   {server.url}", *lines]) + "\n")
    return 0 if ready else 1


def worker_table(metrics: str) -> list[str]:
    """The lines of a table with a row per worker, from a page of Prometheus metrics."""
    names = (UP, DRAINING, *(metric for _, metric, _ in COLUMNS))
    values = Scrape.of(metrics, 0.0).by_worker(names)
    rows = [("role", "worker", "state", *(heading for heading, _, _ in COLUMNS))]
    rows += [(*worker, state_of(found), *_cells(found)) for worker, found in values.items()]
    return aligned(rows, 3)


def _cells(values: Mapping[str, float]) -> Iterable[str]:
    return (form.format(values[name]) if name in values else "-" for _, name, form in COLUMNS)


def _readiness(server: Server) -> tuple[bool, list[str]]:
    """Whether every pair works, and what there is to say about it."""
    status, body = server.get("/ready")
    try:
        answer = json.loads(body)
        pairs = [f"pair     {pair}" for pair in answer["pairs"]]
    except (ValueError, KeyError, TypeError):  # not a readiness report
        answer, pairs = {}, []
    if status == http.client.OK:
        return True, ["ready    yes", *pairs]
    if answer.get("degraded"):
        return False, ["ready    in part: requests are served by what is left", *pairs]
    reason = "" if pairs else f": {error_message(body) or f'HTTP {status}'}"
    return False, [f"ready    no{reason}", *pairs]


def _models(server: Server) -> list[str]:
    if server.get("/v1/models")[0] == http.client.SERVICE_UNAVAILABLE:
        return []  # it is starting, as it has said already
    cards = json.loads(ask(server, "/v1/models"))["data"]
    return [
        f"model    {card['id']} (max_model_len {card['max_model_len']}, from {card['root']})"
        for card in cards
    ]
