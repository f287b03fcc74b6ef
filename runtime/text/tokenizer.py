"""The tokenizer of a model directory.

Encoding is the `tokenizers` library's. Decoding joins the bytes of the tokens (see `pieces`), which
gives the library's text for everything that is UTF-8, and lets whole texts, streamed texts and
log probabilities agree on what a token is.

Chat templates are not applied here, and the context length is not checked.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as LibraryTokenizer

from twinflow.protos.errors import CheckpointError, InvalidRequest
from twinflow.runtime.checkpoint.directory import ModelDirectory
from twinflow.runtime.checkpoint.json_file import JsonObject, read_json, shorten
from twinflow.runtime.text.pieces import pieces_for

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_MAX_CONFIG_BYTES = 16 << 20
# Scripts with one to four bytes per character, spaces at both ends and in between, a line break.
_SAMPLE = " Plain text,  naïve 中文 текст 👩‍🚀\n\tdef f(x): return x**2 "


class Tokenizer:
    """Text to tokens and back; safe to use from several threads.

    Use `load`; the constructor is for tokenizers that are not in a directory.

    Args:
        library: truncation and padding get switched off.
        bos_token: text of the beginning-of-sequence token, if there is one.
        eos_token: text of the end-of-sequence token, if there is one.

    Raises:
        CheckpointError: the tokenizer cannot be served.

    Attributes:
        vocab_size: one more than the largest token id.
        special_ids: tokens that are left out of decoded text.
        bos_token_id: beginning-of-sequence token.
        eos_token_id: end-of-sequence token by the tokenizer's own account.
    """

    def __init__(
        self,
        library: LibraryTokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
    ) -> None:
        library.no_truncation()
        library.no_padding()
        added = library.get_added_tokens_decoder()
        self._library = library
        self._pieces = pieces_for(_decoder(library))
        self._bytes: dict[int, bytes] = {}
        self.vocab_size = 1 + max(library.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self.bos_token_id = self._named("bos_token", bos_token)
        self.eos_token_id = self._named("eos_token", eos_token)
        self._check_pieces()

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Load `tokenizer.json`, and `tokenizer_config.json` if there is one.

        Raises:
            CheckpointError: a file is missing, damaged or of a kind that cannot be served.
        """
        folder = ModelDirectory.open(directory)
        path = folder.require(TOKENIZER, "expected the tokenizer that belongs to the model")
        config = read_tokenizer_config(folder)
        try:
            library = LibraryTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every fault
            raise CheckpointError(f"{path}: is not a tokenizer: {shorten(str(error))}") from error
        return cls(
            library,
            bos_token=token_text(config, "bos_token"),
            eos_token=token_text(config, "eos_token"),
        )

    @property
    def strips_leading_space(self) -> bool:
        """Whether one space at the very start of a text is dropped."""
        return self._pieces.strips_leading_space

    def encode(
        self, text: str, *, add_special_tokens: bool = True, param: str | None = None
    ) -> list[int]:
        """The tokens of a text.

        Args:
            text: special tokens spelled out in it are recognised.
            add_special_tokens: add what the model expects around a text, such as its first token.
            param: the request field that holds the text, for the error.

        Raises:
            InvalidRequest: the text has unpaired surrogates.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"The text is not valid Unicode: unpaired surrogate at character {error.start}.",
                param,
            ) from error
        return self._library.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD.

        Ids without a token, such as the padding of a model's vocabulary, have no text.
        """
        skipped = self.special_ids if skip_special_tokens else frozenset()
        data = b"".join(self.token_bytes(token) for token in token_ids if token not in skipped)
        text = data.decode(errors="replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that one token stands for; may be part of a character."""
        data = self._bytes.get(token_id)
        if data is not None:
            return data
        token = self._library.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        if token is None:
            return b""
        return self._bytes.setdefault(token_id, self._pieces.to_bytes(token))

    def token_text(self, token_id: int) -> str:
        """The text of one token, with `\\xNN` for bytes that are not whole characters."""
        return self.token_bytes(token_id).decode(errors="backslashreplace")

    def _named(self, name: str, token: str | None) -> int | None:
        if token is None:
            return None
        token_id = self._library.token_to_id(token)
        if token_id is None:
            raise CheckpointError(
                f"{TOKENIZER_CONFIG}: {name}: {shorten(repr(token))} is no token of {TOKENIZER}"
            )
        return token_id

    def _check_pieces(self) -> None:
        """Compare with the library, in case a decoder does more than its name says."""
        tokens = self.encode(_SAMPLE)
        for skip in (True, False):
            expected = self._library.decode(tokens, skip_special_tokens=skip)
            if self.decode(tokens, skip_special_tokens=skip) != expected:
                raise CheckpointError(
                    f"{TOKENIZER}: decoder: its text is not the sum of its tokens; expected a "
                    f"byte-level or a SentencePiece decoder"
                )


def read_tokenizer_config(folder: ModelDirectory) -> JsonObject | None:
    """`tokenizer_config.json`, if the directory has one.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder.find(TOKENIZER_CONFIG)
    return None if path is None else read_json(path, _MAX_CONFIG_BYTES)


def token_text(config: JsonObject | None, key: str) -> str | None:
    """A special token's text: a string, or an object with `content`.

    Raises:
        CheckpointError: it is neither.
    """
    if config is None or key not in config:
        return None
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str) or not is_unicode(value):
        raise config.error(key, "a token's text")
    return value


def is_unicode(text: str) -> bool:
    """Whether a string has no unpaired surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoder(library: LibraryTokenizer) -> dict[str, object] | None:
    decoder = library.decoder
    # The library shows a decoder's settings in this form only, short of the whole vocabulary's.
    return None if decoder is None else json.loads(decoder.__getstate__())
