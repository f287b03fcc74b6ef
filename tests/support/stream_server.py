"""A server that answers every request with the same stream, whole or cut off."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from twinflow.cluster.chaos.stream import Endpoint

TOKEN = 'data: {"choices": [{"token_ids": [7], "finish_reason": null}]}\n\n'
LAST = 'data: {"choices": [{"token_ids": [8], "finish_reason": "length"}]}\n\n'
USAGE = 'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
DONE = "data: [DONE]\n\n"
ERROR = 'data: {"error": {"message": "lost"}}\n\n'


@contextmanager
def answering(
    body: str, status: int = 200, length: int | None = None, *, chunked: bool = False
) -> Iterator[Endpoint]:
    """A server that answers every request alike.

    With `length`, it says more than it sends; with `chunked`, the body says itself how long it is.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.close_connection = True
            self.send_response(status)
            if chunked:
                self.send_header("transfer-encoding", "chunked")
            else:
                self.send_header("content-length", str(length or len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Endpoint("127.0.0.1", server.server_port)
        finally:
            server.shutdown()
            thread.join()
