"""From the token deltas of one sequence to its text, its end included.

Joins detokenizer and stop matcher and keeps the account of tokens. It cannot end a sequence on the
workers: when `push` reports a stop string, the caller aborts the sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.runtime.outputs import FinishReason, TokenDelta, TokenLogprobs
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.text.detokenizer import IncrementalDetokenizer
from twinflow.runtime.text.stop import StopMatcher
from twinflow.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New output of one sequence.

    Attributes:
        text: may be empty while a character is incomplete or a stop string could begin, and may
            belong to tokens of earlier deltas.
        token_ids: the tokens that count as generated, up to the one that ended the sequence.
        logprobs: one entry per token, or empty.
        finish_reason: set in the last delta.
        stop_reason: the stop string or stop token that ended the sequence; None for the
            end-of-sequence token.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class SequenceText:
    """Text of one sequence.

    A stop string ends the sequence with the token that completes it; tokens behind that one are
    dropped, whether they are in the same delta or a later one. A stop token counts as generated
    and has no text.

    Args:
        tokenizer: the model's.
        params: stop strings, `min_tokens`, and which stop tokens the request named.
        prompt_token_ids: see `IncrementalDetokenizer`.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, prompt_token_ids, skip_special_tokens=skip_special_tokens
        )
        self._matcher = StopMatcher(params.stop, params.include_stop_str_in_output)
        self._params = params
        self._num_tokens = 0
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether the last delta was returned."""
        return self._finished

    def push(self, delta: TokenDelta) -> TextDelta:
        """The text that further tokens add; an empty delta once the sequence has finished."""
        if self._finished:
            return TextDelta()
        text = ""
        for count, token in enumerate(_with_text(delta), start=1):
            self._num_tokens += 1
            shown, stop = self._show(self._detokenizer.push((token,)))
            text += shown
            if stop is not None:
                return self._stopped_by(stop, text, delta, count)
        if delta.finish_reason is None:
            return TextDelta(text, delta.token_ids, delta.logprobs)
        return self._end(text, delta)

    def _show(self, text: str) -> tuple[str, str | None]:
        """What may be shown of new text, and the stop string it completes."""
        result = self._matcher.push(text, may_stop=self._num_tokens >= self._params.min_tokens)
        return result.text, result.matched

    def _stopped_by(self, stop: str, text: str, delta: TokenDelta, count: int) -> TextDelta:
        self._finished = True
        return TextDelta(
            text, delta.token_ids[:count], delta.logprobs[:count], FinishReason.STOP, stop
        )

    def _end(self, text: str, delta: TokenDelta) -> TextDelta:
        """The last delta, with everything that was held back."""
        shown, stop = self._show(self._detokenizer.flush())
        if stop is not None:
            return self._stopped_by(stop, text + shown, delta, len(delta.token_ids))
        self._finished = True
        named = delta.stop_token_id in self._params.stop_token_ids
        return TextDelta(
            text + shown + self._matcher.flush(),
            delta.token_ids,
            delta.logprobs,
            delta.finish_reason,
            delta.stop_token_id if named else None,
        )


def _with_text(delta: TokenDelta) -> tuple[int, ...]:
    """The tokens of a delta without the stop token that ends it."""
    if delta.stop_token_id is not None and delta.token_ids[-1:] == (delta.stop_token_id,):
        return delta.token_ids[:-1]
    return delta.token_ids
