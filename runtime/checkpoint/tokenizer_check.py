"""Whether a directory's `tokenizer.json` can serve its model.

Checks, with nothing kept: encoding and decoding text is `twinflow.runtime.text`'s business.
"""

from pathlib import Path

from tokenizers import Tokenizer

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.directory import ModelDirectory
from twinflow.runtime.checkpoint.json_file import JsonObject, read_json, shorten, shown
from twinflow.runtime.models.config import ModelConfig

TOKENIZER = "tokenizer.json"
MAX_TOKENIZER_BYTES = 256 << 20


def check_tokenizer(directory: Path, config: ModelConfig) -> None:
    """Check that the tokenizer loads and fits the embedding.

    Raises:
        CheckpointError: the file is missing or damaged, a token's id has no row in the embedding,
            two tokens share an id, or an end-of-sequence id is no token.
    """
    folder = ModelDirectory.open(directory)
    path = folder.require(TOKENIZER, _hint(folder))
    content = read_json(path, MAX_TOKENIZER_BYTES)
    _check_added_tokens(content)
    vocabulary = _load(path).get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise CheckpointError(f"{path}: has no tokens")
    _check_ids(path, vocabulary, config)


def _hint(folder: ModelDirectory) -> str:
    if folder.find("tokenizer.model") is not None:
        return "tokenizer.model alone is not supported: save the fast tokenizer with transformers"
    return "expected the tokenizer that belongs to the model"


def _load(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every fault
        raise CheckpointError(f"{path}: is not a tokenizer: {shorten(str(error))}") from error


def _check_added_tokens(content: JsonObject) -> None:
    """The library resolves clashing added tokens silently; here they are refused."""
    entries = content.get("added_tokens")
    if entries is None:
        return
    if not isinstance(entries, list):
        raise content.error("added_tokens", "a list")
    vocabulary = _vocabulary(content)
    by_id = {index: token for token, index in vocabulary.items()}
    for entry in entries:
        text, index = _added_token(content, entry)
        if vocabulary.get(text, index) != index or by_id.get(index, text) != text:
            other = by_id.get(index, text)
            raise CheckpointError(
                f"{content.file}: added_tokens: {shown(text)} with id {index} clashes with "
                f"{shown(other)} with id {vocabulary.get(other, index)}"
            )
        vocabulary[text] = index
        by_id[index] = text


def _added_token(content: JsonObject, entry: object) -> tuple[str, int]:
    if isinstance(entry, dict):
        text, index = entry.get("content"), entry.get("id")
        if isinstance(text, str) and isinstance(index, int) and not isinstance(index, bool):
            return text, index
    raise content.error("added_tokens", "entries with content and id")


def _vocabulary(content: JsonObject) -> dict[str, int]:
    """Token -> id of the model, without the added tokens."""
    model = content.section("model")
    vocabulary = model.get("vocab") if model is not None else None
    if isinstance(vocabulary, dict):
        return {token: index for token, index in vocabulary.items() if isinstance(index, int)}
    if isinstance(vocabulary, list):
        return {
            item[0]: index
            for index, item in enumerate(vocabulary)
            if isinstance(item, list) and item and isinstance(item[0], str)
        }
    raise content.error("model", "a model with a vocabulary")


def _check_ids(path: Path, vocabulary: dict[str, int], config: ModelConfig) -> None:
    by_id: dict[int, str] = {}
    for token, index in vocabulary.items():
        if index in by_id:
            raise CheckpointError(
                f"{path}: {shown(by_id[index])} and {shown(token)} have the same id {index}"
            )
        by_id[index] = token
    highest = max(by_id)
    if highest >= config.vocab_size:
        raise CheckpointError(
            f"{path}: {shown(by_id[highest])} has the id {highest}, but the model's embedding has "
            f"{config.vocab_size} rows (vocab_size in config.json)"
        )
    unknown = [index for index in config.eos_token_ids if index not in by_id]
    if unknown:
        raise CheckpointError(
            f"{path}: no token has the end-of-sequence id {unknown[0]} (eos_token_id)"
        )
