"""How the vocabularies of GGUF files split text before the merges.

A GGUF file names the kind only (`tokenizer.ggml.pre`), so the rule has to be known here. The
rules are those of the `tokenizer.json` of the models that the kinds are named after. A kind that
is not known is an error: a wrong rule would give other tokens without anyone noticing.
"""

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

# Contractions; letters with one leading mark; {digits}; punctuation; line ends; spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Splitting:
    """One rule.

    Attributes:
        pre_tokenizer: splits text and spells bytes.
        normalizer: applied before; None for none.
        whole_words: a piece that is a token is taken as it is, without the merges.
        adds_bos: files that do not say otherwise want a beginning-of-sequence token.
    """

    pre_tokenizer: PreTokenizer
    normalizer: Normalizer | None = None
    whole_words: bool = False
    adds_bos: bool = False


def splitting(kind: str) -> Splitting | None:
    """The rule for a value of `tokenizer.ggml.pre`; None if the kind is not known."""
    match kind:
        case "gpt-2":
            return Splitting(pre_tokenizers.ByteLevel(add_prefix_space=False))
        case "smollm":
            return Splitting(
                pre_tokenizers.Sequence(
                    [
                        pre_tokenizers.Digits(individual_digits=True),
                        pre_tokenizers.ByteLevel(add_prefix_space=False),
                    ]
                )
            )
        case "llama-bpe" | "llama3" | "llama-v3":
            return Splitting(_words(r"\p{N}{1,3}"), whole_words=True, adds_bos=True)
        case "qwen2" | "deepseek-r1-qwen":
            return Splitting(_words(r"\p{N}"), normalizer=normalizers.NFC())
        case _:
            return None


KINDS = "gpt-2, smollm, llama-bpe, qwen2"
"""The main kinds, for errors."""


def _words(digits: str) -> PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS.format(digits=digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
