"""Messages between `TemplateRenderer` and its process: JSON behind a length of four bytes.

first     → {"source", "special_tokens", "memory_bytes", "time_s"}
          ← {} or {"error"}
each      → {"messages", "add_generation_prompt", "now", "max_chars"}
          ← {"text"}, {"refusal"} or {"error"}
"""

import json
import struct
from collections.abc import Mapping

HEADER = struct.Struct("!I")


def encode(message: Mapping[str, object]) -> bytes:
    """A frame.

    Raises:
        UnicodeEncodeError: a string has unpaired surrogates.
        RecursionError: values are nested too deeply.
    """
    body = json.dumps(message, ensure_ascii=False).encode()
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> dict[str, object]:
    """The message of a frame without its header.

    Raises:
        ValueError: it is not a JSON object.
    """
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message
