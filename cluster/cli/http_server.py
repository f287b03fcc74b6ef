"""A running server's HTTP address, as commands that look at one know it."""

import http.client
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

from twinflow.cluster.cli import environment
from twinflow.cluster.cli.parser import Invocation, Parser
from twinflow.cluster.cli.sources import report
from twinflow.protos.errors import ConfigError, ServerError, Unavailable

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10.0


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


def add_server_flags(parser: Parser) -> None:
    """Which server a command looks at."""
    parser.add_argument(
        "--url", metavar="URL", help=f"the server's HTTP address [default: {DEFAULT_URL}]"
    )
    parser.add_argument("--api-key", metavar="KEY", help="better set as TWINFLOW_API_KEY")


def server_of(invocation: Invocation) -> Server:
    """The server that flags and environment name.

    Raises:
        ConfigError: an argument is wrong.
    """
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


def ask(server: Server, path: str) -> str:
    """The body of a page.

    Raises:
        ServerError: the server cannot be reached or answers with an error.
    """
    status, body = server.get(path)
    if status != http.client.OK:
        raise ServerError(f"{server.url}{path}: HTTP {status}: {error_message(body)}")
    return body


def error_message(body: str) -> str:
    """The message of an OpenAI error object or the reason of a readiness report."""
    try:
        document = json.loads(body)
        return str(document["error"]["message"] if "error" in document else document["reason"])
    except (ValueError, KeyError, TypeError):
        return body[:200].strip()
