"""Typed clients of a twinflow gateway, over gRPC.

    from twinflow import Client

    with Client("localhost:50051") as client:
        print(client.generate("The capital of France is", max_tokens=8).outputs[0].text)

`Client` blocks and `AsyncClient` awaits; `Admin` is for operators, and blocks. Everything but the
waiting is shared: `request` writes messages, `response` reads them, `operations` says which calls a
method takes, and `session` knows the server and turns failed calls into the exceptions of
`twinflow.protos.errors`. No torch, no Ray, and no retries: an error says by `retry_after_s` when
trying again makes sense.
"""

from twinflow.cluster.client.admin import Admin
from twinflow.cluster.client.asynchronous import AsyncClient
from twinflow.cluster.client.request import CallOptions, ChatMessage
from twinflow.cluster.client.response import ServedModel, TextChunk, Usage
from twinflow.cluster.client.session import Tls
from twinflow.cluster.client.synchronous import Client

__all__ = [
    "Admin",
    "AsyncClient",
    "CallOptions",
    "ChatMessage",
    "Client",
    "ServedModel",
    "TextChunk",
    "Tls",
    "Usage",
]
