"""Log probabilities in OpenAI's two shapes."""

from collections.abc import Sequence

from twinflow.cluster.gateway.http.schema import (
    ChatLogprob,
    ChatLogprobs,
    CompletionLogprobs,
    TopLogprob,
)
from twinflow.cluster.gateway.text_protocols import Tokenizer
from twinflow.runtime.outputs import TokenLogprobs

# JSON has no infinity; vLLM reports impossible tokens with the same value.
_LOWEST = -9999.0


def chat_logprobs(entries: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> ChatLogprobs:
    """The shape of chat completions."""
    return ChatLogprobs(
        [
            ChatLogprob(
                tokenizer.token_text(entry.token_id),
                max(entry.logprob, _LOWEST),
                list(tokenizer.token_bytes(entry.token_id)),
                [
                    TopLogprob(
                        tokenizer.token_text(token),
                        max(logprob, _LOWEST),
                        list(tokenizer.token_bytes(token)),
                    )
                    for token, logprob in entry.top
                ],
            )
            for entry in entries
        ]
    )


class CompletionLogprobsFormatter:
    """The shape of completions; counts characters over the chunks of one completion."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = 0

    def format(self, entries: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        """The log probabilities of further tokens."""
        text = self._tokenizer.token_text
        return CompletionLogprobs(
            tokens=[text(entry.token_id) for entry in entries],
            token_logprobs=[max(entry.logprob, _LOWEST) for entry in entries],
            top_logprobs=[
                {
                    text(token): max(logprob, _LOWEST)
                    for token, logprob in (*entry.top, (entry.token_id, entry.logprob))
                }
                for entry in entries
            ],
            text_offset=[self._offset(entry.token_id) for entry in entries],
        )

    def _offset(self, token_id: int) -> int:
        """Where a token's text begins; within a character, where that character begins."""
        data = self._tokenizer.token_bytes(token_id)
        starts = [byte & 0xC0 != 0x80 for byte in data]
        offset = self._characters - (1 if starts and not starts[0] else 0)
        self._characters += sum(starts)
        return max(0, offset)
