"""A small model drafts: token by token, with the noise of the model that is served.

The drafter's tokens are argmax of its own logits plus the noise of their positions, after the same
penalties and filters. So it agrees with the target at least (1 - d) / (1 + d) of the time, where d
is the total variation between the two (Daliri et al., arXiv 2408.07978), at any temperature.

A proposal of k tokens takes k passes over one row of each sequence; the first of them also computes
what the sequence has gained since the last proposal, a prompt included. The drafter has KV blocks
of its own. A sequence that finds none idle goes without proposals until some are. KV of a proposed
token is kept if the token came true: it was computed from the same tokens.

With a plan that computes layers side by side (EasySpec, arXiv 2502.02493), a pass is quicker and
approximate, and so are the keys and values it writes. The first pass of a proposal is the bonus
calibration: exact, over all that the sequence has gained. It writes exact keys and values over
approximate ones, and the first proposed token is exact. Passes behind it are approximate, and
what they write is scratch: it is never counted as written.

                     accepted  bonus │ proposed
    exact pass       c  d      x     │              proposes y
    approximate                      │ y            proposes z

KV of a prompt may come from another worker (`draft_kv`); a sequence whose KV is on its way goes
without proposals until it is here, or has failed to come.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.outputs import SampledToken
from twinflow.runtime.runner import DraftRunner
from twinflow.runtime.sampling import Sampler, SamplingState
from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import (
    DraftedSequence,
    DraftQuery,
    LikelyNext,
    Outlook,
)
from twinflow.runtime.speculative.drafters.draft_kv import DraftKV
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan


@dataclass(slots=True)
class _Drafted:
    """What the drafter knows of a sequence.

    Attributes:
        state: sampling state, up to the sequence's last known token.
        known: tokens of the sequence that the state has seen.
        prompt: tokens of its prompt.
        written: tokens whose KV is in the blocks and counts, in order.
        exact: positions, from the first, that were last computed by an exact pass.
        blocks: block table.
    """

    state: SamplingState
    known: int
    prompt: int
    written: list[int] = field(default_factory=list)
    exact: int = 0
    blocks: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Round:
    """A proposal in the making.

    Attributes:
        drafted: of the sequence.
        start: first position to be computed.
        tokens: from there to the last one known or proposed.
        limit: most tokens to propose.
        state: behind the last of them.
        proposed: so far.
    """

    drafted: _Drafted
    start: int
    tokens: list[int]
    limit: int
    state: SamplingState
    proposed: list[int] = field(default_factory=list)


def prompt_rows(rounds: Sequence[Round]) -> int:
    """Rows of sequences whose prompt is still to be computed."""
    return sum(len(one.tokens) for one in rounds if one.start < one.drafted.prompt)


class DraftModelDrafter:
    """See the module.

    Args:
        runner: of the small model, with KV blocks that nobody else uses.
        sampler: for its vocabulary, which is that of the target.
        vocab_size: tokens of both.
        max_rows: rows of one pass.
        plan: how passes behind the first one of a proposal cross the layers.
        calibrate: make the first pass exact; without it, all passes behind the prompt follow the
            plan, and what they write is kept.
        fingerprint: see `DraftKV`.

    Attributes:
        kv: its blocks, and prompts that come from elsewhere.
    """

    likely_tokens = 0

    def __init__(
        self,
        runner: DraftRunner,
        sampler: Sampler,
        *,
        vocab_size: int,
        max_rows: int,
        plan: LayerPlan | None = None,
        calibrate: bool = True,
        fingerprint: str = "",
    ) -> None:
        self._groups = None if plan is None or plan.is_serial else plan.groups
        self._calibrate = calibrate
        self._runner = runner
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._max_rows = max_rows
        self.kv = DraftKV(runner, max_rows, fingerprint)
        self._block_size = self.kv.block_size
        self._pool = self.kv.pool
        self._sequences: dict[str, _Drafted] = {}

    @property
    def num_idle_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._pool.num_idle

    def propose(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        """See `Drafter.propose`."""
        rounds = [self._begin(query) for query in queries]
        live = [one for one in rounds if one is not None]
        began, rows = self.kv.begin_pass(), prompt_rows(live)
        self._catch_up(live)
        exact = self._calibrate or any(one.start < one.drafted.prompt for one in live)
        while live:
            self._advance(live, exact=exact or self._groups is None)
            if exact:
                self.kv.end_pass(began, rows)
            exact = False
            live = [one for one in live if len(one.proposed) < one.limit]
        return [NOTHING if one is None else Draft.chain(one.proposed) for one in rounds]

    def _begin(self, query: DraftQuery) -> Round | None:
        """Take note of what a sequence has gained, and of blocks for what is to be computed."""
        sequence = query.sequence
        if self.kv.awaits(sequence.request_id):
            return None
        drafted = self._sequences.get(sequence.request_id)
        if drafted is None:
            drafted = self._sequences[sequence.request_id] = self._meet(sequence)
        gained = sequence.tokens(drafted.known, sequence.num_tokens - drafted.known)
        for position, token in enumerate(gained, start=drafted.known):
            drafted.state.append(token)
            if position < len(drafted.written) and drafted.written[position] != token:
                del drafted.written[position:]
        drafted.known = sequence.num_tokens
        # The last token's logits are needed, so it is computed in any case.
        del drafted.written[drafted.known - 1 :]
        missing = -(-(drafted.known + query.limit - 1) // self._block_size) - len(drafted.blocks)
        if missing > self._pool.num_idle:
            return None
        drafted.blocks += self._pool.allocate(max(missing, 0))
        start = len(drafted.written)
        tokens = list(sequence.tokens(start, drafted.known - start))
        return Round(drafted, start, tokens, query.limit, drafted.state)

    def _meet(self, sequence: DraftedSequence) -> _Drafted:
        params = replace(sequence.params, logprobs=None)
        prompt, seed = sequence.prompt_token_ids, sequence.params.seed or 0
        ending = sequence.ending_token_ids
        state = SamplingState(params, seed, prompt, self._vocab_size, ending)
        drafted = _Drafted(state, known=len(prompt), prompt=len(prompt))
        brought = self.kv.take(sequence.request_id)
        if brought is not None:
            drafted.written, drafted.blocks = list(brought.tokens), list(brought.blocks)
            drafted.exact = len(brought.tokens)
        return drafted

    def _catch_up(self, rounds: Sequence[Round]) -> None:
        """Compute all rows that do not fit into one pass with the last row of every sequence."""
        room = max(1, self._max_rows // max(1, len(rounds)))
        for one in rounds:
            while len(one.tokens) > room:
                count = min(self._max_rows, len(one.tokens) - 1)
                self._runner.forward([self._rows(one, count, samples=False)])
                self._written(one, count, exact=True)

    def _advance(self, rounds: Sequence[Round], *, exact: bool) -> None:
        """Propose one more token to every sequence."""
        rows = [self._rows(one, len(one.tokens), samples=True) for one in rounds]
        logits = self._runner.forward(rows, groups=None if exact else self._groups)
        sampled = self._sampler.sample(logits, [one.state for one in rounds])
        for one, token in zip(rounds, sampled, strict=True):
            self._written(one, len(one.tokens), exact=exact)
            if isinstance(token, SampledToken):
                one.state = one.state.after(token.token_id)
                one.proposed.append(token.token_id)
                one.tokens = [token.token_id]
            else:  # nothing can be said behind logits that are no numbers
                one.limit = len(one.proposed)

    def _rows(self, one: Round, count: int, *, samples: bool) -> SequenceRows:
        tokens = one.tokens[:count]
        return SequenceRows(
            tokens, one.start, one.drafted.blocks, samples, prompt_tokens=one.start + count
        )

    def _written(self, one: Round, count: int, *, exact: bool) -> None:
        drafted = one.drafted
        if exact or not self._calibrate:
            drafted.written += one.tokens[:count]
        if exact and one.start <= drafted.exact:
            drafted.exact = one.start + count
        elif not exact:
            drafted.exact = min(drafted.exact, one.start)
        one.start += count
        one.tokens = one.tokens[count:]

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        """See `Drafter.outlook`."""
        return Outlook(behind=tuple(map(self._behind_of, sequences)))

    def _behind_of(self, sequence: DraftedSequence) -> int:
        name = sequence.request_id
        drafted = self._sequences.get(name)
        written = self.kv.num_brought(name) if drafted is None else len(drafted.written)
        return max(sequence.num_tokens - 1 - written, 0)

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        """See `Drafter.observe`; never called."""

    def forget(self, sequence: DraftedSequence) -> None:
        """See `Drafter.forget`."""
        drafted = self._sequences.pop(sequence.request_id, None)
        if drafted is not None:
            self._pool.release(drafted.blocks)
        self.kv.forget(sequence.request_id)

    def check_integrity(self) -> None:
        """Between proposals, what counts as written is exact; raises AssertionError otherwise.

        Without calibration that is so for prompts. The last known token is always still to be
        computed, and every block is idle or in one block table.
        """
        for name, drafted in self._sequences.items():
            counted = len(drafted.written)
            if not self._calibrate:
                counted = min(counted, drafted.prompt)
            if counted > drafted.exact:
                raise AssertionError(
                    f"request {name}: of {counted} drafted positions {drafted.exact} are exact"
                )
            if len(drafted.written) > len(drafted.blocks) * self._block_size:
                raise AssertionError(f"request {name} has written more than its blocks hold")
        held = [block for drafted in self._sequences.values() for block in drafted.blocks]
        held += self.kv.held_blocks
        if len(set(held)) < len(held) or len(held) + self._pool.num_idle != self._pool.num_blocks:
            raise AssertionError("blocks of the drafter are lost, or belong to several sequences")
