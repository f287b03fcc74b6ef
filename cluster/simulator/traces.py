"""Readers of published request traces: lengths, times and shared blocks, never text.

    format    recognised by                        times   shared prefixes
    Azure     header TIMESTAMP,ContextTokens,…     yes     no
    lengths   header num_prefill_tokens,…          no      no
    Mooncake  JSON lines with hash_ids             yes     yes, blocks of 512 tokens

Azure LLM inference traces 2023 (Splitwise, ISCA'24, CC-BY-4.0); ShareGPT and arXiv length files as
published with Sarathi-Serve and Vidur; Mooncake traces (FAST'25). Rows with a length of 0 cannot
be sent and are left out; a length below 0 is damage. Scaling and choosing rows is the business of
whoever sends them, for real or in a simulation.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from twinflow.protos.errors import ConfigError

MOONCAKE_BLOCK_TOKENS = 512

Row = Mapping[str, Any]
_FRACTION_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a request is, and when it came if a trace says so.

    Attributes:
        input_tokens: prompt length, at least 1.
        output_tokens: tokens to generate, at least 1.
        at_s: arrival after the start of the trace; None where the source has no times.
        blocks: ids of the prompt's leading blocks; equal ids mean equal tokens.
    """

    input_tokens: int
    output_tokens: int
    at_s: float | None = None
    blocks: tuple[int, ...] = ()


def _azure_time(text: str) -> float:
    """Seconds since 1970 of `2023-11-16 18:17:03.9799600`; seven digits are one too many."""
    whole, _, fraction = text.partition(".")
    digits = fraction[:_FRACTION_DIGITS].ljust(_FRACTION_DIGITS, "0")
    return datetime.fromisoformat(f"{whole}.{digits}+00:00").timestamp()


def _azure(row: Row) -> Shape:
    at_s = _azure_time(row["TIMESTAMP"])
    return Shape(int(row["ContextTokens"]), int(row["GeneratedTokens"]), at_s)


def _lengths(row: Row) -> Shape:
    return Shape(int(row["num_prefill_tokens"]), int(row["num_decode_tokens"]))


def _mooncake(row: Row) -> Shape:
    blocks = tuple(int(block) for block in row["hash_ids"])
    at_s = int(row["timestamp"]) / 1000.0
    return Shape(int(row["input_length"]), int(row["output_length"]), at_s, blocks)


_READERS: dict[frozenset[str], Callable[[Row], Shape]] = {
    frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}): _azure,
    frozenset({"num_prefill_tokens", "num_decode_tokens"}): _lengths,
    frozenset({"timestamp", "input_length", "output_length", "hash_ids"}): _mooncake,
}


def _reader(path: Path, columns: Iterable[str]) -> Callable[[Row], Shape]:
    have = frozenset(columns)
    for wanted, reader in _READERS.items():
        if wanted <= have:
            return reader
    known = "; ".join(", ".join(sorted(wanted)) for wanted in _READERS)
    raise ConfigError(f"--trace {path}: columns {sorted(have)} are none of: {known}")


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file if line.strip()]
        return list(csv.DictReader(file))


def read_trace(path: Path) -> list[Shape]:
    """Read a trace, its format recognised by its columns; the first arrival is at 0 s.

    Raises:
        ConfigError: the file cannot be read, has no rows that can be sent, or a row is not what its
            format says.
    """
    try:
        rows = _rows(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--trace {path} cannot be read: {error}") from error
    if not rows:
        raise ConfigError(f"--trace {path} has no rows")
    reader = _reader(path, rows[0])
    shapes = []
    for number, row in enumerate(rows, start=1):
        try:
            shapes.append(_sound(reader(row)))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"--trace {path}: row {number} is damaged: {error!r}") from error
    sent = [shape for shape in shapes if shape.input_tokens and shape.output_tokens]
    if not sent:
        raise ConfigError(f"--trace {path}: no row can be sent, as each has a length of 0")
    return _from_zero(sent)


def _sound(shape: Shape) -> Shape:
    if min(shape.input_tokens, shape.output_tokens) < 0:
        raise ValueError("a length is below 0")
    return shape


def _from_zero(shapes: list[Shape]) -> list[Shape]:
    """Order by arrival and count times from the first; a source without times keeps its order."""
    timed = [shape.at_s for shape in shapes if shape.at_s is not None]
    if not timed:
        return shapes
    first = min(timed)
    shifted = [replace(shape, at_s=(shape.at_s or 0.0) - first) for shape in shapes]
    return sorted(shifted, key=lambda shape: shape.at_s or 0.0)
