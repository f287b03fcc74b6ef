"""Answers of `/v1/completions`."""

from collections import defaultdict
from collections.abc import Sequence

from msgspec import UNSET

from twinflow.cluster.gateway.generation import CompletionDelta
from twinflow.cluster.gateway.http.answer_format import AnswerFormat, AnswerHead
from twinflow.cluster.gateway.http.logprobs import CompletionLogprobsFormatter
from twinflow.cluster.gateway.http.schema import CompletionChoice, CompletionLogprobs
from twinflow.cluster.gateway.text_protocols import Tokenizer
from twinflow.cluster.gateway.validation import RequestOptions
from twinflow.runtime.outputs import CompletionOutput, TokenLogprobs


class CompletionFormat(AnswerFormat):
    """See `AnswerFormat`."""

    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, head: AnswerHead, options: RequestOptions, tokenizer: Tokenizer) -> None:
        super().__init__(head, options, tokenizer)
        self._begun: set[int] = set()
        self._logprobs_of: defaultdict[int, CompletionLogprobsFormatter] = defaultdict(
            lambda: CompletionLogprobsFormatter(tokenizer)
        )

    def choice(self, output: CompletionOutput, prompt: tuple[int, ...]) -> CompletionChoice:
        wanted = self.options.return_token_ids
        return CompletionChoice(
            index=output.index,
            text=output.text,
            logprobs=self._logprobs(output.index, output.logprobs),
            finish_reason=output.finish_reason.value,
            stop_reason=output.stop_reason,
            token_ids=output.token_ids if wanted else UNSET,
            prompt_token_ids=prompt if wanted else UNSET,
        )

    def chunk_choice(self, delta: CompletionDelta, prompt: tuple[int, ...]) -> CompletionChoice:
        first = delta.index not in self._begun
        self._begun.add(delta.index)
        wanted = self.options.return_token_ids
        ends = delta.finish_reason is not None
        return CompletionChoice(
            index=delta.index,
            text=delta.text,
            logprobs=self._logprobs(delta.index, delta.logprobs),
            finish_reason=delta.finish_reason.value if delta.finish_reason else None,
            stop_reason=delta.stop_reason if ends else UNSET,
            token_ids=delta.token_ids if wanted else UNSET,
            prompt_token_ids=prompt if wanted and first else UNSET,
        )

    def _logprobs(self, index: int, entries: Sequence[TokenLogprobs]) -> CompletionLogprobs | None:
        return self._logprobs_of[index].format(entries) if entries else None
