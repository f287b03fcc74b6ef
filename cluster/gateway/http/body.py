"""Reading a request's body: JSON, in UTF-8, up to a limit. What it means is not known here."""

import asyncio

from fastapi import Request

from twinflow.cluster.gateway.intake import Intake, Share
from twinflow.cluster.gateway.validation import parse_json
from twinflow.protos.errors import Cancelled, PayloadTooLarge, UnsupportedMediaType

# Shorter ones are parsed faster than a thread is reached.
_INLINE_BYTES = 64 << 10


async def read_json(request: Request, max_bytes: int, intake: Intake) -> object:
    """The JSON document that a request carries.

    Args:
        request: its body has not been read.
        max_bytes: of the body.
        intake: bounds what has arrived of all bodies together.

    Raises:
        UnsupportedMediaType: declared as something else than plain JSON in UTF-8.
        PayloadTooLarge: more than `max_bytes`, declared or sent.
        Overloaded: the intake has no room for it.
        InvalidRequest: not a JSON document.
        Cancelled: the client went away.
    """
    _check_media_type(request)
    _check_length(request, max_bytes)
    with intake.share() as share:
        body = await _read(request, max_bytes, share)
        if len(body) <= _INLINE_BYTES:
            return parse_json(body)
        # The parser calls back into Python, so that a thread lets others run between.
        return await asyncio.to_thread(parse_json, body)


def _check_media_type(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedMediaType("The body must not have a content encoding.")
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "application/json":
        raise UnsupportedMediaType("The Content-Type must be application/json.")
    for parameter in parameters.lower().split(";"):
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8"):
            raise UnsupportedMediaType("The charset of the body must be utf-8.")


def _check_length(request: Request, max_bytes: int) -> None:
    declared = request.headers.get("content-length", "0")
    if int(declared) > max_bytes:  # the protocol has checked that it is a number
        raise _too_large(max_bytes)


async def _read(request: Request, max_bytes: int, share: Share) -> bytes:
    """The body; only what has arrived counts, whatever the sender has declared."""
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("The client went away.")
        piece = message.get("body", b"")
        share.take(len(piece))
        body += piece
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body must not exceed {max_bytes} bytes.")
