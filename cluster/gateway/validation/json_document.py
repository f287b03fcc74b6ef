"""From the bytes of a request body to a JSON document, strictly.

RFC 8259 and nothing beside it: no NaN, no number that overflows a double, no duplicate key, no
half of a surrogate pair. It does not know what the document means.
"""

import json
import math
import re

from twinflow.protos.errors import InvalidRequest

# Only an escape can put half of a surrogate pair into a string: the decoder of UTF-8 refuses it.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(body: bytes) -> object:
    """Parse a UTF-8 JSON document, with or without a byte order mark.

    Raises:
        InvalidRequest: empty, not UTF-8, not JSON, nested too deeply, or with a value that JSON
            does not have.
    """
    if not body:
        raise InvalidRequest("The request body is empty; send a JSON object.")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest("The request body is not valid UTF-8.") from None
    try:
        document: object = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique_keys,
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequest(f"The request body is not valid JSON at {place}.") from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    except ValueError:  # Python converts no integer of thousands of digits
        raise InvalidRequest("The request body has a number with too many digits.") from None
    if _SURROGATE_ESCAPE.search(text):
        _refuse_lone_surrogates(document)
    return document


def _refuse_constant(_name: str) -> float:
    raise InvalidRequest("NaN and Infinity are not JSON numbers.")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InvalidRequest("The request body has a number beyond the range of a double.")
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest("The request body has a JSON object with a duplicate key.")
    return found


def _refuse_lone_surrogates(document: object) -> None:
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise InvalidRequest(
                    "The request body has a string with an unpaired surrogate."
                ) from None
        elif isinstance(value, dict):
            pending.extend(value.keys())
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
