"""KV of a model that drafts, as it leaves one worker and comes to another.

A prompt that was computed elsewhere is unknown to the drafter where it is decoded. Either the
drafter computes it when it is first asked about the sequence, or its KV is handed over:

    sends       hold ── compute, a pass at a time ── drop
    receives    expect ── arrived ── take             whoever drafts has to wait between the two

Blocks that are written to from elsewhere belong to nobody until `arrived`, whatever becomes of
their sequence. Moves no bytes itself. Everything is called on the thread that drafts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twinflow.protos.errors import HandoffError
from twinflow.runtime.kv.block_pool import BlockPool
from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.runner import DraftRunner

# A pass tells how long prompts take if it has so many rows.
_PROMPT_ROWS = 16
_NEWEST = 0.25


@dataclass(frozen=True, slots=True)
class DraftedPrompt:
    """A prompt whose exact KV is in blocks.

    Attributes:
        tokens: all whose KV is there.
        blocks: block table.
    """

    tokens: tuple[int, ...]
    blocks: tuple[int, ...]


@dataclass(slots=True)
class _Sent:
    """A prompt that is computed for another worker."""

    prompt: DraftedPrompt
    computed: int = 0


@dataclass(slots=True)
class _Expected:
    """A prompt that another worker computes."""

    prompt: DraftedPrompt
    here: bool = False
    wanted: bool = True


class DraftKV:
    """See the module.

    Args:
        runner: of the drafter.
        max_rows: rows of one pass.
        fingerprint: of the drafter's weights and what else decides about bits; empty if no other
            worker can read its blocks, because they are spread over ranks.
        clock: seconds, monotonic.

    Attributes:
        cache: the memory of the blocks.
        pool: who holds them.
        block_size: token slots of one.
        fingerprint: likewise.
        token_s: seconds that a token of a prompt takes; None if that was not measured.
        usable: somebody drafts from the blocks; from then on that nobody does, none are taken for
            prompts of or from other workers.
    """

    def __init__(
        self,
        runner: DraftRunner,
        max_rows: int,
        fingerprint: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner = runner
        self._max_rows = max_rows
        self._clock = clock
        self._sent: dict[str, _Sent] = {}
        self._expected: dict[str, _Expected] = {}
        self.cache = runner.kv_cache
        self.pool = BlockPool(self.cache.num_blocks)
        self.block_size = self.cache.layout.block_size
        self.fingerprint = fingerprint
        self.token_s: float | None = None
        self.usable = True

    @property
    def under_way(self) -> int:
        """Prompts that are computed for others or come from them."""
        return len(self._sent) + len(self._expected)

    @property
    def held_blocks(self) -> list[int]:
        """The blocks of these prompts."""
        prompts = [one.prompt for one in self._sent.values()]
        prompts += [one.prompt for one in self._expected.values()]
        return [block for prompt in prompts for block in prompt.blocks]

    def begin_pass(self) -> float:
        """Now; for `end_pass`."""
        return self._clock()

    def end_pass(self, began: float, rows: int) -> None:
        """Exact rows are computed, and what came of them was looked at."""
        if rows < _PROMPT_ROWS:
            return
        took = (self._clock() - began) / rows
        self.token_s = (
            took if self.token_s is None else self.token_s + _NEWEST * (took - self.token_s)
        )

    def hold(self, name: str, tokens: Sequence[int]) -> None:
        """Take blocks for a prompt that another worker asks for.

        Raises:
            HandoffError: there are none idle, or the drafter has failed.
        """
        self._sent[name] = _Sent(self._take_blocks(name, tokens))

    def compute(self, name: str) -> tuple[int, int, Sequence[int]]:
        """Compute as much of a held prompt as a pass has rows for; exactly.

        Returns:
            First token and the one behind the last, which is the last of all once it is the number
            of tokens, and the block table.
        """
        sent = self._sent[name]
        prompt, start = sent.prompt, sent.computed
        tokens = prompt.tokens[start : start + self._max_rows]
        end = sent.computed = start + len(tokens)
        began = self.begin_pass()
        rows = SequenceRows(tokens, start, prompt.blocks, samples=True, prompt_tokens=end)
        self._runner.forward([rows]).argmax(dim=-1).tolist()  # waits for the device
        self.end_pass(began, len(tokens))
        return start, end, prompt.blocks

    def drop(self, name: str) -> None:
        """Nobody reads a held prompt any more; unknown names are fine."""
        sent = self._sent.pop(name, None)
        if sent is not None:
            self.pool.release(sent.prompt.blocks)

    def expect(self, name: str, tokens: Sequence[int]) -> DraftedPrompt | None:
        """Take blocks for a prompt that another worker is asked for; None if there are none.

        None is the answer, too, where nobody drafts any more.
        """
        if name in self._expected:
            return None
        try:
            prompt = self._take_blocks(name, tokens)
        except HandoffError:
            return None
        self._expected[name] = _Expected(prompt)
        return prompt

    def arrived(self, name: str, *, whole: bool) -> None:
        """Nothing writes to the blocks of an expected prompt any more.

        Args:
            name: of the sequence.
            whole: all of them are here and right.
        """
        expected = self._expected[name]
        expected.here = whole
        if not whole or not expected.wanted:
            del self._expected[name]
            self.pool.release(expected.prompt.blocks)

    def awaits(self, name: str) -> bool:
        """Whether a sequence's prompt is still to come."""
        expected = self._expected.get(name)
        return expected is not None and not expected.here

    def num_brought(self, name: str) -> int:
        """Tokens of a sequence's prompt that have come or are on their way."""
        expected = self._expected.get(name)
        return 0 if expected is None else len(expected.prompt.tokens)

    def take(self, name: str) -> DraftedPrompt | None:
        """The prompt of a sequence if it has come; its blocks belong to the caller from now on."""
        expected = self._expected.pop(name, None)
        return None if expected is None else expected.prompt

    def forget(self, name: str) -> None:
        """A sequence is over; blocks that are being written to are given back afterwards."""
        expected = self._expected.get(name)
        if expected is None:
            return
        expected.wanted = False
        if expected.here:
            self.arrived(name, whole=False)

    def _take_blocks(self, name: str, tokens: Sequence[int]) -> DraftedPrompt:
        if not self.usable:
            raise HandoffError(f"the drafter has failed, and does not compute the prompt of {name}")
        count = -(-len(tokens) // self.block_size)
        if count > self.pool.num_idle:
            raise HandoffError(f"the drafter has no {count} idle blocks for the prompt of {name}")
        return DraftedPrompt(tuple(tokens), tuple(self.pool.allocate(count)))
