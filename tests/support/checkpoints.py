"""Model directories for tests: whole ones, and raw safetensors files to damage.

Models come from `tests.support.tiny_models`; this file only puts them on disk.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tests.support.tiny_models import hf_config_json, tiny_config, tiny_state_dict
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.models.config import ModelConfig

VOCAB_SIZE = 300
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("1", "2"))

# A value of `changes` that takes the key away.
REMOVED = object()


def small_config(architecture: str = "LlamaForCausalLM", **changes: Any) -> ModelConfig:
    """A tiny model whose embedding fits `byte_tokenizer`."""
    return tiny_config(architecture, **({"vocab_size": VOCAB_SIZE} | changes))


def byte_vocabulary() -> list[str]:
    """Special tokens, the 256 bytes, and the merged tokens; a token's place is its id."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL_TOKENS, *alphabet, *("".join(pair) for pair in MERGES)]


def byte_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer that encodes any text."""
    vocabulary = {token: index for index, token in enumerate(byte_vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def write_checkpoint(
    directory: Path,
    config: ModelConfig | None = None,
    state: dict[str, Tensor] | None = None,
    shards: int = 1,
) -> Path:
    """A complete model directory, its weights in `shards` files."""
    config = config or small_config()
    state = tiny_state_dict(config) if state is None else state
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", hf_config_json(config))
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    if shards == 1:
        save_file(state, directory / "model.safetensors")
    else:
        write_shards(directory, [dict(list(state.items())[i::shards]) for i in range(shards)])
    return directory


def write_shards(directory: Path, shards: list[dict[str, Tensor]]) -> None:
    """Sharded weights with their index."""
    homes: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        name = f"model-{index:05}-of-{len(shards):05}.safetensors"
        save_file(shard, directory / name)
        homes |= dict.fromkeys(shard, name)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": homes})


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON."""
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of the object in `path`, or take them away with `REMOVED`."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: value for key, value in content.items() if value is not REMOVED})


def raw_safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file; `header` is bytes, or an object written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def assert_one_line(error: CheckpointError, *parts: object) -> None:
    """The message is one line of bearable length that contains every part."""
    message = str(error)
    assert "\n" not in message
    assert len(message) < 600
    for part in parts:
        assert str(part) in message, message
