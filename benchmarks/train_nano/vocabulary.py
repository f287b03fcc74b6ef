"""The tokenizer of the nano models, and the corpus as token ids.

Byte-level BPE with GPT-2's split into words, which keeps a line break and its indentation together.
Every document starts with `<|endoftext|>`, the only special token.
"""

import random
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.train_nano.corpus import Document

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
# A word seen twice as often is not worth twice the reading: training looks at every fourth file.
STRIDE = 4


def train_tokenizer(corpus: Iterable[Document], size: int) -> Tokenizer:
    """A tokenizer of `size` tokens; the same corpus gives the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sampled = (document.text for at, document in enumerate(corpus) if at % STRIDE == 0)
    tokenizer.train_from_iterator(sampled, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, corpus: Iterable[Document], seed: int) -> torch.Tensor:
    """All documents in a shuffled order as one row of ids, int32."""
    shuffled = list(corpus)
    random.Random(seed).shuffle(shuffled)
    ids: list[int] = []
    for encoding in tokenizer.encode_batch([document.text for document in shuffled]):
        ids.append(END_OF_TEXT_ID)
        ids.extend(encoding.ids)
    return torch.tensor(ids, dtype=torch.int32)


def token_bytes(tokenizer: Tokenizer) -> torch.Tensor:
    """Bytes of text that each token stands for [vocabulary]; none for the special one."""
    # Byte-level BPE writes every byte as one character of its alphabet.
    lengths = [0] * tokenizer.get_vocab_size()
    for token, index in tokenizer.get_vocab(with_added_tokens=False).items():
        lengths[index] = len(token)
    lengths[END_OF_TEXT_ID] = 0
    return torch.tensor(lengths)


def write_ids(target: Path, ids: torch.Tensor) -> None:
    """A row of token ids as safetensors."""
    save_file({"ids": ids}, target)


def read_ids(source: Path) -> torch.Tensor:
    """What `write_ids` wrote."""
    return load_file(source)["ids"]
