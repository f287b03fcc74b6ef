"""Answers of `/v1/chat/completions`.

The role rides with the first token: a chunk that says nothing but `assistant` would be taken for
the first token by every tool that measures the time to it.
"""

from msgspec import UNSET, UnsetType

from twinflow.cluster.gateway.generation import CompletionDelta, Generation
from twinflow.cluster.gateway.http.answer_format import AnswerFormat, AnswerHead
from twinflow.cluster.gateway.http.logprobs import chat_logprobs
from twinflow.cluster.gateway.http.schema import (
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatMessageBody,
)
from twinflow.cluster.gateway.text_protocols import Tokenizer
from twinflow.cluster.gateway.validation import RequestOptions
from twinflow.runtime.outputs import CompletionOutput


class ChatFormat(AnswerFormat):
    """See `AnswerFormat`."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, head: AnswerHead, options: RequestOptions, tokenizer: Tokenizer) -> None:
        super().__init__(head, options, tokenizer)
        self._begun: set[int] = set()

    def choice(self, output: CompletionOutput, prompt: tuple[int, ...]) -> ChatChoice:
        return ChatChoice(
            index=output.index,
            message=ChatMessageBody(output.text),
            logprobs=chat_logprobs(output.logprobs, self.tokenizer) if output.logprobs else None,
            finish_reason=output.finish_reason.value,
            stop_reason=output.stop_reason,
            token_ids=output.token_ids if self.options.return_token_ids else UNSET,
        )

    def chunk_choice(self, delta: CompletionDelta, prompt: tuple[int, ...]) -> ChatChunkChoice:
        first = delta.index not in self._begun
        self._begun.add(delta.index)
        ends = delta.finish_reason is not None
        return ChatChunkChoice(
            index=delta.index,
            delta=ChatDelta(
                "assistant" if first else UNSET, delta.text if first or delta.text else UNSET
            ),
            logprobs=chat_logprobs(delta.logprobs, self.tokenizer) if delta.logprobs else None,
            finish_reason=delta.finish_reason.value if delta.finish_reason else None,
            stop_reason=delta.stop_reason if ends else UNSET,
            token_ids=delta.token_ids if self.options.return_token_ids else UNSET,
        )

    def prompt_token_ids(self, generation: Generation) -> tuple[int, ...] | UnsetType:
        return generation.prompts[0] if self.options.return_token_ids else UNSET
