"""`tokenizer.json` and `tokenizer_config.json` out of GGUF metadata.

Byte-level BPE vocabularies only (`tokenizer.ggml.model` = `gpt2`), which is what Llama 3, Qwen
and SmolLM have. SentencePiece vocabularies are refused. The chat template is copied as text; it
runs in the sandbox of `twinflow.runtime.text` only.
"""

from enum import IntEnum

from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from tokenizers.processors import PostProcessor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.gguf_import.config import Json
from twinflow.runtime.checkpoint.gguf_import.reader import GgufFile
from twinflow.runtime.checkpoint.gguf_import.splitting import KINDS, Splitting, splitting
from twinflow.runtime.checkpoint.json_file import shorten, shown

_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


class _Kind(IntEnum):
    """llama.cpp's token types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer that the metadata describes.

    Raises:
        CheckpointError: the kind of vocabulary is not supported, or the vocabulary is damaged.
    """
    rule = _splitting(file)
    tokens, kinds = _tokens(file)
    vocabulary = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != _Kind.UNUSED
    }
    try:
        model = models.BPE(vocab=vocabulary, merges=_merges(file), ignore_merges=rule.whole_words)
        tokenizer = Tokenizer(model)
        tokenizer.post_processor = _post_processor(file, tokens, rule)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception for every fault
        raise CheckpointError(
            f"{file.path}: the vocabulary is damaged: {shorten(str(error))}"
        ) from error
    if rule.normalizer is not None:
        tokenizer.normalizer = rule.normalizer
    tokenizer.pre_tokenizer = rule.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    _add_whole_tokens(tokenizer, tokens, kinds)
    return tokenizer


def tokenizer_config(file: GgufFile, max_length: int) -> Json:
    """The content of `tokenizer_config.json`.

    Args:
        file: the GGUF file.
        max_length: longest sequence of the model.
    """
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": _adds(file, "bos", _splitting(file).adds_bos),
        "add_eos_token": _adds(file, "eos", False),
    }
    tokens, _ = _tokens(file)
    for role, key in _ROLES.items():
        index = _token_id(file, key, len(tokens))
        if index is not None:
            config[role] = tokens[index]
    template = file.metadata.text("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def _splitting(file: GgufFile) -> Splitting:
    if file.metadata.text("tokenizer.ggml.model") != "gpt2":
        raise file.metadata.error(
            "tokenizer.ggml.model", "'gpt2' (byte-level BPE); other vocabularies are not supported"
        )
    rule = splitting(file.metadata.text("tokenizer.ggml.pre") or "")
    if rule is None:
        raise file.metadata.error("tokenizer.ggml.pre", f"one of {KINDS}")
    return rule


def _tokens(file: GgufFile) -> tuple[list[str], list[int]]:
    """Texts and types of the tokens, by id."""
    metadata = file.metadata
    tokens = metadata.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise metadata.error("tokenizer.ggml.tokens", "a list of strings")
    if len(set(tokens)) != len(tokens):
        raise metadata.error("tokenizer.ggml.tokens", "a list without repetitions")
    kinds = metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        kinds = [_Kind.NORMAL] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise metadata.error("tokenizer.ggml.token_type", f"a list of {len(tokens)} types")
    return tokens, kinds


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    merges = file.metadata.strings("tokenizer.ggml.merges")
    if merges is None:
        raise file.metadata.error("tokenizer.ggml.merges", "a list of strings")
    pairs = []
    for merge in merges:
        # Byte-level tokens contain no space, so that the first one separates the two.
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise CheckpointError(
                f"{file.path}: tokenizer.ggml.merges: found {shown(merge)}, expected two tokens"
            )
        pairs.append((left, right))
    return pairs


def _add_whole_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """Control and user-defined tokens match in the text as they are, before it is split.

    They are in the vocabulary already, so that they keep their ids.
    """
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_Kind.CONTROL, _Kind.UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _Kind.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])


def _post_processor(file: GgufFile, tokens: list[str], rule: Splitting) -> PostProcessor:
    """Adds the beginning and the end of a sequence, if the file asks for them."""
    before = _edge(file, tokens, "bos", rule.adds_bos)
    after = _edge(file, tokens, "eos", False)
    if not before and not after:
        return processors.ByteLevel(trim_offsets=False)
    template = [token for token, _ in before] + ["$A"] + [token for token, _ in after]
    return processors.TemplateProcessing(single=template, special_tokens=before + after)


def _edge(file: GgufFile, tokens: list[str], edge: str, default: bool) -> list[tuple[str, int]]:
    if not _adds(file, edge, default):
        return []
    index = _token_id(file, f"{edge}_token_id", len(tokens))
    if index is None:
        raise file.metadata.error(
            f"tokenizer.ggml.{edge}_token_id", f"a token, since add_{edge}_token is set"
        )
    return [(tokens[index], index)]


def _adds(file: GgufFile, edge: str, default: bool) -> bool:
    stated = file.metadata.boolean(f"tokenizer.ggml.add_{edge}_token")
    return default if stated is None else stated


def _token_id(file: GgufFile, key: str, count: int) -> int | None:
    return file.metadata.integer(f"tokenizer.ggml.{key}", 0, count - 1)
