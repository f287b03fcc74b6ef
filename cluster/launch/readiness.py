"""Asks a gateway over HTTP whether it serves, as any monitor would."""

import http.client

import msgspec

# A gateway proves its readiness within this time, or says that it could not.
_ASK_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 1 << 20


class _Readiness(msgspec.Struct):
    """What is read of an answer of `/ready`."""

    reason: str


def missing_for_readiness(address: str) -> str:
    """What a gateway says is missing before it serves requests; empty when nothing is.

    Args:
        address: host and port of its HTTP door.
    """
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_ASK_TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        body = answer.read(_MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        return f"http://{address}/ready does not answer: {str(error) or type(error).__name__}"
    finally:
        connection.close()
    if answer.status == 200:
        return ""
    try:
        return msgspec.json.decode(body, type=_Readiness).reason
    except msgspec.DecodeError:
        return f"http://{address}/ready answers {answer.status}"
