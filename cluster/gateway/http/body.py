"""Reading a request's body: JSON, in UTF-8, up to a limit. What it means is not known here."""

from fastapi import Request

from twinflow.cluster.gateway.validation import parse_json
from twinflow.protos.errors import Cancelled, PayloadTooLarge, UnsupportedMediaType


async def read_json(request: Request, max_bytes: int) -> object:
    """The JSON document that a request carries.

    Raises:
        UnsupportedMediaType: declared as something else than plain JSON in UTF-8.
        PayloadTooLarge: more than `max_bytes`, declared or sent.
        InvalidRequest: not a JSON document.
        Cancelled: the client went away.
    """
    _check_media_type(request)
    return parse_json(await _read(request, max_bytes))


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


async def _read(request: Request, max_bytes: int) -> bytes:
    too_large = PayloadTooLarge(f"The body must not exceed {max_bytes} bytes.")
    declared = request.headers.get("content-length", "0")
    if int(declared) > max_bytes:  # the protocol has checked that it is a number
        raise too_large
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("The client went away.")
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)
