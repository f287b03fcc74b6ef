"""`twinflow status`: what a running server says about itself, as a table.

Asks the same endpoints as a load balancer and a metrics scraper would; it knows nothing that they
could not know.
"""

import http.client
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from twinflow.cluster.cli import environment
from twinflow.cluster.cli.parser import Commands, Invocation
from twinflow.cluster.cli.sources import report
from twinflow.cluster.cli.tables import aligned
from twinflow.protos.errors import ConfigError, ServerError, Unavailable

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10.0

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
_UP, _DRAINING = "twinflow:worker_up", "twinflow:worker_draining"


@dataclass(frozen=True, slots=True)
class Server:
    """Where to ask, and the key to show.

    Attributes:
        url: scheme, host and port.
        api_key: sent with every question; empty for none.
    """

    url: str
    api_key: str = ""

    def get(self, path: str) -> tuple[int, str]:
        """HTTP status and body of GET `path`.

        Raises:
            Unavailable: nobody answers.
        """
        address = urlsplit(self.url)
        secure = address.scheme == "https"
        connection_type = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connection_type(address.hostname or "", address.port, timeout=TIMEOUT_S)
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            connection.request("GET", address.path.rstrip("/") + path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"{self.url} does not answer ({error}); is `twinflow serve` running there?"
            ) from error
        finally:
            connection.close()


def add_to(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "status",
        help="show whether a server is ready, its workers and queues",
        description="Show whether a server is ready, which model it serves, and its workers.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--url", metavar="URL", help=f"the server's HTTP address [default: {DEFAULT_URL}]"
    )
    parser.add_argument("--api-key", metavar="KEY", help="better set as TWINFLOW_API_KEY")
    parser.runs(run)


def run(invocation: Invocation) -> int:
    """Print the table; 0 if the server is ready, 1 if it is not.

    Raises:
        ConfigError: an argument is wrong.
        ServerError: the server cannot be reached or answers with an error.
    """
    server = _server(invocation)
    ready, lines = _readiness(server)
    lines += _models(server)
    lines += ["", *worker_table(_ask(server, "/metrics"))]
    invocation.stdout.write("\n".join([f"server   {server.url}", *lines]) + "\n")
    return 0 if ready else 1


def worker_table(metrics: str) -> list[str]:
    """The lines of a table with a row per worker, from a page of Prometheus metrics."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    names = {_UP, _DRAINING, *(metric for _, metric, _ in COLUMNS)}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in names and "worker" in sample.labels:
                worker = (sample.labels.get("role", ""), sample.labels["worker"])
                values.setdefault(worker, {})[sample.name] = sample.value
    rows = [("role", "worker", "state", *(heading for heading, _, _ in COLUMNS))]
    rows += [(*worker, _state(found), *_cells(found)) for worker, found in sorted(values.items())]
    return aligned(rows, 3)


def _state(values: Mapping[str, float]) -> str:
    if _UP not in values:
        return "-"
    if not values[_UP]:
        return "lost"
    return "draining" if values.get(_DRAINING) else "up"


def _cells(values: Mapping[str, float]) -> Iterable[str]:
    return (form.format(values[name]) if name in values else "-" for _, name, form in COLUMNS)


def _server(invocation: Invocation) -> Server:
    variables = environment.settings(invocation.environ)
    complaints = [*invocation.complaints, *environment.unknown_variables(invocation.environ)]
    url = invocation.text("url", variables.get("TWINFLOW_URL", DEFAULT_URL)).rstrip("/")
    if not _is_http(url):
        complaints.append(f"--url {url!r}: must look like {DEFAULT_URL}")
    if complaints:
        raise ConfigError(report(complaints))
    key = invocation.text("api_key", environment.key_to_send(invocation.environ))
    return Server(url, key)


def _is_http(url: str) -> bool:
    try:
        address = urlsplit(url)
        return address.scheme in {"http", "https"} and bool(address.hostname) and address.port != 0
    except ValueError:  # what urlsplit raises for a port that is no number
        return False


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
    reason = "" if pairs else f": {_error_message(body) or f'HTTP {status}'}"
    return False, [f"ready    no{reason}", *pairs]


def _models(server: Server) -> list[str]:
    if server.get("/v1/models")[0] == http.client.SERVICE_UNAVAILABLE:
        return []  # it is starting, as it has said already
    cards = json.loads(_ask(server, "/v1/models"))["data"]
    return [
        f"model    {card['id']} (max_model_len {card['max_model_len']}, from {card['root']})"
        for card in cards
    ]


def _ask(server: Server, path: str) -> str:
    status, body = server.get(path)
    if status != http.client.OK:
        raise ServerError(f"{server.url}{path}: HTTP {status}: {_error_message(body)}")
    return body


def _error_message(body: str) -> str:
    """The message of an OpenAI error object or the reason of a readiness report."""
    try:
        document = json.loads(body)
        return str(document["error"]["message"] if "error" in document else document["reason"])
    except (ValueError, KeyError, TypeError):
        return body[:200].strip()
