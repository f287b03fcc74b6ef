"""JSON files read strictly, and typed access to their keys.

Refused with the file's name: byte order marks, files that are not UTF-8 or too large, NaN and
Infinity, repeated keys, endless nesting, anything but an object at the top. `JsonObject` turns a
wrong type or a value out of bounds into an error that names the key.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from twinflow.protos.errors import CheckpointError

_BOM = b"\xef\xbb\xbf"
_SHOWN = 60
_SCALARS = (str, int, float, type(None))


class JsonObject:
    """An object of a JSON file.

    Absent keys and `null` are the same thing: None, or an error where a value is required.

    Args:
        file: path shown in errors.
        values: the decoded object.
        prefix: dotted path of the object inside the file, for errors.
    """

    def __init__(self, file: Path, values: dict[str, object], prefix: str = "") -> None:
        self.file = file
        self.values = values
        self.prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def get(self, key: str) -> object:
        """The raw value, or None."""
        return self.values.get(key)

    def error(self, key: str, expected: str) -> CheckpointError:
        """The error for an unusable value of `key`."""
        found = shown(self.values[key]) if key in self.values else "nothing"
        return CheckpointError(
            f"{self.file}: {self.prefix}{key}: found {found}, expected {expected}"
        )

    def integer(self, key: str, low: int, high: int) -> int | None:
        """An integer in [low, high]; booleans and floats are not integers."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def required_integer(self, key: str, low: int, high: int) -> int:
        """Like `integer`, but absence is an error."""
        value = self.integer(key, low, high)
        if value is None:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float | None:
        """A finite number in [low, high]."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"a number from {low:g} to {high:g}")
        if not math.isfinite(value) or not low <= value <= high:
            raise self.error(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str) -> bool | None:
        """`true` or `false`."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """A string."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def strings(self, key: str) -> list[str] | None:
        """A list of strings."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "a list of strings")
        return value

    def section(self, key: str) -> "JsonObject | None":
        """A nested object."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return JsonObject(self.file, value, f"{self.prefix}{key}.")


def read_json(path: Path, max_bytes: int) -> JsonObject:
    """Read the JSON object in `path`.

    Raises:
        CheckpointError: see the module's docstring.
    """
    data = read_small_file(path, max_bytes)
    if data.startswith(_BOM):
        raise CheckpointError(
            f"{path}: starts with a byte order mark, expected UTF-8 without one; save it again"
        )
    if not data.strip():
        raise CheckpointError(f"{path}: is empty, expected a JSON object")
    try:
        values = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise CheckpointError(f"{path}: is nested too deeply for JSON") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON: {shorten(str(error))}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: found {shown(values)}, expected a JSON object")
    return JsonObject(path, values)


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file that must not be larger than `max_bytes`."""
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise CheckpointError(f"{path}: is larger than {max_bytes} bytes")
    return data


def shown(value: object) -> str:
    """`value` as an error shows it: one line, not long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list) and not all(isinstance(item, _SCALARS) for item in value):
        return f"a list of {len(value)}"
    return shorten(repr(value))


def shorten(text: str) -> str:
    """`text` on one line and without its end if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "..."


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """`object_pairs_hook` that refuses repeated keys."""
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shorten(repr(key))} appears twice")
            seen.add(key)
    return values


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")
