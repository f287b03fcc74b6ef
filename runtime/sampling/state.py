"""What sampling remembers of one sequence: its position and, if penalised, its token counts.

The state grows by one token at a time and is never rebuilt. It holds host memory only, a few
bytes per distinct token, and is dropped with the sequence.
"""

from collections.abc import Collection, Iterable, Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from twinflow.protos.errors import InvalidRequest
from twinflow.runtime.sampling.noise import stream_key
from twinflow.runtime.sampling_params import SamplingParams

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


class TokenCounts:
    """Distinct tokens of a sequence and how often each was generated."""

    def __init__(self, prompt_token_ids: Iterable[int]) -> None:
        distinct = np.unique(np.fromiter(prompt_token_ids, dtype=np.int64))
        self._index = {token: index for index, token in enumerate(distinct.tolist())}
        self._ids = distinct
        self._counts = np.zeros(len(distinct), dtype=np.float32)

    def add(self, token_id: int) -> None:
        """Count one generated token."""
        index = self._index.setdefault(token_id, len(self._index))
        if index == len(self._ids):
            room = max(16, index)
            self._ids = np.concatenate([self._ids, np.zeros(room, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.float32)])
        self._ids[index] = token_id
        self._counts[index] += 1

    def copy(self) -> "TokenCounts":
        """The same counts, to be counted on without changing these."""
        twin = TokenCounts(())
        twin._index = self._index.copy()
        twin._ids = self._ids.copy()
        twin._counts = self._counts.copy()
        return twin

    @property
    def ids(self) -> IntArray:
        """Distinct tokens [n] of prompt and output."""
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> FloatArray:
        """How often each of `ids` was generated [n]; 0 for tokens of the prompt only."""
        return self._counts[: len(self._index)]


class SamplingState:
    """The sampling side of one sequence, made when it is admitted.

    Args:
        params: sampling parameters; `params.seed` and `params.n` are not looked at.
        seed: this sequence's seed, in [0, 2**64).
        prompt_token_ids: at least one token.
        vocab_size: columns of the logits.
        stop_token_ids: every token that would end the sequence, end-of-sequence tokens included
            unless they are ignored; banned while fewer than `min_tokens` tokens were generated.

    Raises:
        InvalidRequest: a token is outside the vocabulary, or nothing is left to generate.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        prompt_token_ids: Sequence[int],
        vocab_size: int,
        stop_token_ids: Collection[int],
    ) -> None:
        params.check_vocabulary(vocab_size)
        self.params = params
        self._seed = seed
        self._vocab_size = vocab_size
        self._prompt_length = len(prompt_token_ids)
        self._num_outputs = 0
        self._stop_ids = _stop_ids(params, stop_token_ids, vocab_size)
        self.bias_ids: IntArray = np.fromiter(params.logit_bias.keys(), dtype=np.int64)
        self.bias_values: FloatArray = np.fromiter(params.logit_bias.values(), dtype=np.float32)
        self.counts = _counts(params, prompt_token_ids, vocab_size)

    def append(self, token_id: int) -> None:
        """Record the token chosen at `position`."""
        if not 0 <= token_id < self._vocab_size:
            raise ValueError(f"token {token_id} is outside the vocabulary of {self._vocab_size}")
        self._num_outputs += 1
        if self.counts is not None:
            self.counts.add(token_id)

    def after(self, token_id: int) -> "SamplingState":
        """The state of the sequence if this token came next; this one stays as it is.

        Costs a copy of the token counts where a penalty needs them, and next to nothing otherwise.
        """
        twin = copy(self)
        if self.counts is not None:
            twin.counts = self.counts.copy()
        twin.append(token_id)
        return twin

    @property
    def position(self) -> int:
        """Absolute position of the next token: prompt length plus generated tokens."""
        return self._prompt_length + self._num_outputs

    @property
    def seed(self) -> int:
        """The sequence's seed."""
        return self._seed

    @property
    def noise_key(self) -> int:
        """Key of the noise at `position`."""
        return stream_key(self._seed, self.position)

    @property
    def banned_ids(self) -> IntArray:
        """Tokens that must not be chosen now."""
        if self._num_outputs < self.params.min_tokens:
            return self._stop_ids
        return self._stop_ids[:0]


def _stop_ids(params: SamplingParams, stop_token_ids: Collection[int], vocab_size: int) -> IntArray:
    # A tokenizer may know end tokens that the model's vocabulary lacks: they never come up.
    known = sorted({token for token in stop_token_ids if 0 <= token < vocab_size})
    if params.min_tokens > 0 and len(known) == vocab_size:
        raise InvalidRequest(
            "min_tokens leaves no token: every token is a stop token.", "min_tokens"
        )
    return np.array(known, dtype=np.int64)


def _counts(
    params: SamplingParams, prompt_token_ids: Sequence[int], vocab_size: int
) -> TokenCounts | None:
    """Counts if a penalty needs them; only the repetition penalty looks at the prompt."""
    if params.repetition_penalty != 1.0:
        counts = TokenCounts(prompt_token_ids)
        # The ids become offsets into the whole batch: a wrong one would touch another row.
        if len(counts.ids) and (counts.ids[0] < 0 or counts.ids[-1] >= vocab_size):
            raise InvalidRequest(
                f"The prompt has a token outside the vocabulary of {vocab_size}.", "prompt"
            )
        return counts
    if params.presence_penalty or params.frequency_penalty:
        return TokenCounts(())
    return None
