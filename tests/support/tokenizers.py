"""Small tokenizers of the two kinds that are served, and directories that hold them."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

BYTE_LEVEL_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SENTENCEPIECE_SPECIALS = ("<unk>", "<s>", "</s>")

_CORPUS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def add(first, second):\n    return first + second\n",
    "Wo sich Fuchs und Hase gute Nacht sagen, schläft der müde Jäger.",
    "東京は日本の首都です。東京は大きい。",
    "Emoji: 🙂🙂🚀🚀 family 👩‍👩‍👧",
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """Byte-level BPE like GPT-2's, with ChatML's special tokens in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(BYTE_LEVEL_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """BPE with byte fallback like Llama 2's: a space in front, and `<s>` before every text."""
    vocab, merges = _sentencepiece_vocabulary()
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SENTENCEPIECE_SPECIALS]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return tokenizer


@cache
def _sentencepiece_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokens = [*SENTENCEPIECE_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    text = "▁".join(_CORPUS[:3]).replace(" ", "▁").replace("\n", "")
    tokens += sorted({*text, "▁"})
    merges: list[tuple[str, str]] = []
    for word in ("▁", "▁the", "▁The", "▁capital", "▁of", "▁is", "▁▁", "▁return"):
        for end in range(1, len(word)):
            pair = (word[:end], word[end])
            if pair not in merges:
                merges.append(pair)
                tokens.append(word[: end + 1])
    return {token: index for index, token in enumerate(tokens)}, merges


def write_tokenizer(
    directory: Path,
    tokenizer: Tokenizer,
    *,
    bos_token: str | None = None,
    eos_token: str | None = None,
    chat_template: str | Sequence[dict[str, str]] | None = None,
) -> Path:
    """Write tokenizer.json and tokenizer_config.json; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": bos_token, "eos_token": eos_token, "chat_template": chat_template}
    known = {key: value for key, value in config.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(known), encoding="utf-8")
    return directory


def write_chatml_tokenizer(directory: Path) -> Path:
    """A byte-level tokenizer with the ChatML template and its special tokens."""
    return write_tokenizer(
        directory,
        byte_level_tokenizer(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHATML,
    )
