"""What the request pipeline needs of a tokenizer and of chat templates.

`twinflow.runtime.text` has them; tests bring their own.
"""

from collections.abc import Sequence
from typing import Protocol

from twinflow.runtime.outputs import FinishReason, TokenDelta, TokenLogprobs
from twinflow.runtime.sampling_params import SamplingParams


class Tokenizer(Protocol):
    """Text to tokens and back; safe to call from several threads."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that one token stands for; may be part of a character."""
        ...

    def token_text(self, token_id: int) -> str:
        """The text of one token, with `\\xNN` for bytes that are not whole characters."""
        ...


class Renderer(Protocol):
    """A model's chat template."""

    async def render(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation.

        Raises:
            InvalidRequest: the template refuses the conversation.
        """
        ...


class TextDelta(Protocol):
    """New output of one sequence, as text.

    Attributes:
        text: may be empty while a character is incomplete or a stop string could begin.
        token_ids: the tokens behind it, no more than up to the one that completed a stop string.
        logprobs: one entry per token, or none.
        finish_reason: set in the last one.
        stop_reason: the stop string or stop token that ended the sequence.
    """

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> tuple[int, ...]: ...
    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]: ...
    @property
    def finish_reason(self) -> FinishReason | None: ...
    @property
    def stop_reason(self) -> str | int | None: ...


class SequenceText(Protocol):
    """Turns the tokens of one sequence into text and watches for its stop strings."""

    def push(self, delta: TokenDelta) -> TextDelta:
        """The text that further tokens add."""
        ...


class TextCodec(Protocol):
    """Everything about text that depends on the model."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def renderer(self) -> Renderer | None:
        """None if the model has no chat template."""
        ...

    def sequence_text(
        self, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> SequenceText:
        """A fresh state for one sequence."""
        ...
