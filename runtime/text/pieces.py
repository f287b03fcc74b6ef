"""Which bytes a token stands for, read off the decoder of a tokenizer.json.

A token's bytes may be part of a character only. The text of a sequence is the bytes of its tokens,
joined and read as UTF-8, so that text can be taken apart and put together at any token.

Two kinds of decoder work that way and cover the models served here: byte-level BPE (GPT-2, Llama 3,
Qwen, SmolLM2) and SentencePiece with byte fallback (Llama 2, Mistral). Others, whose text is not
the sum of its tokens, are refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from twinflow.protos.errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces(Protocol):
    """Bytes of the tokens of one kind of tokenizer."""

    @property
    def strips_leading_space(self) -> bool:
        """Whether one space at the very start of a text is dropped."""
        ...

    def to_bytes(self, token: str) -> bytes:
        """UTF-8 bytes, perhaps of part of a character, that a token's vocabulary entry means."""
        ...


class ByteLevelPieces:
    """Byte-level BPE: each character of an entry stands for one byte.

    Printable Latin-1 characters stand for themselves, the other 68 bytes for the characters from
    U+0100 on (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
    """

    strips_leading_space = False

    def __init__(self) -> None:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        self._byte_of = {chr(byte): byte for byte in printable}
        self._byte_of |= {chr(0x100 + index): byte for index, byte in enumerate(others)}

    def to_bytes(self, token: str) -> bytes:
        try:
            return bytes([self._byte_of[character] for character in token])
        except KeyError:
            # An added token with characters outside the alphabet is plain text.
            return token.encode()


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """SentencePiece: plain text with a stand-in for the space, and `<0x0A>` for single bytes.

    Attributes:
        replacements: (what to replace, by what), in order.
        byte_fallback: `<0xNN>` means a byte.
        strips_leading_space: see `Pieces`.
    """

    replacements: tuple[tuple[str, str], ...]
    byte_fallback: bool
    strips_leading_space: bool

    def to_bytes(self, token: str) -> bytes:
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.encode()


def pieces_for(decoder: Mapping[str, object] | None) -> Pieces:
    """The pieces of a tokenizer whose tokenizer.json has this `decoder`.

    Raises:
        CheckpointError: the decoder is of another kind.
    """
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelPieces()
    # Replace (any number), then ByteFallback, Fuse and Strip, each at most once.
    count = kinds.count("Replace")
    rest = [kind for kind in ("ByteFallback", "Fuse", "Strip") if kind in kinds]
    if not steps or kinds != ["Replace"] * count + rest:
        raise _unsupported(kinds)
    return SentencePieces(
        replacements=tuple(_replacement(step) for step in steps[:count]),
        byte_fallback="ByteFallback" in rest,
        strips_leading_space="Strip" in rest and _strips_one_space(steps[-1]),
    )


def _steps(decoder: Mapping[str, object] | None) -> Sequence[Mapping[str, object]]:
    if decoder is None:
        return ()
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise _unsupported(decoder.get("type"))
    return steps


def _replacement(step: Mapping[str, object]) -> tuple[str, str]:
    pattern, content = step.get("pattern"), step.get("content")
    if isinstance(pattern, dict) and isinstance(content, str):
        old = pattern.get("String")
        if isinstance(old, str) and old:
            return old, content
    raise _unsupported("Replace with a regular expression")


def _strips_one_space(step: Mapping[str, object]) -> bool:
    if (step.get("content"), step.get("stop")) != (" ", 0) or step.get("start") not in (0, 1):
        raise _unsupported("Strip of more than one leading space")
    return step.get("start") == 1


def _unsupported(found: object) -> CheckpointError:
    return CheckpointError(
        f"tokenizer.json: decoder: found {found}, expected a byte-level or a SentencePiece decoder"
    )
