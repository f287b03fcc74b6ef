"""The unit of work of an engine: a flat list of row groups.

There is no prefill phase and no decode phase. A prefill chunk, a decode token, a speculative
verify run and one layer group of a layered prefill are all rows of one request in one range of
layers. Schedulers make plans, runners execute them; a plan holds no tensors.

What is made for every row or step is a `msgspec.Struct`, here and elsewhere: as frozen dataclasses
these values took a fifth of the time of a simulation to make.
"""

from enum import StrEnum

import msgspec


class RowKind(StrEnum):
    """Why a row group is computed."""

    PREFILL = "prefill"
    DECODE = "decode"
    VERIFY = "verify"


class RowGroup(msgspec.Struct, frozen=True):
    """Consecutive tokens of one request that cross a contiguous range of layers in one step.

    Attributes:
        request_id: whose tokens.
        token_start: position of the first token in the sequence.
        token_count: number of tokens, at least one.
        layer_start: first layer of the range.
        layer_end: one behind the last layer.
        kind: why they are computed.
        samples: the last row yields the next token of the request.
        drafted: so many of the last rows are of tokens that were proposed and are not of the
            sequence yet. Each of them, and the row before them, says what comes behind it.
    """

    request_id: str
    token_start: int
    token_count: int
    layer_start: int
    layer_end: int
    kind: RowKind
    samples: bool
    drafted: int = 0

    @property
    def sampled_rows(self) -> int:
        """How many of the last rows say what comes behind them."""
        return 1 + self.drafted if self.samples else 0

    @property
    def token_end(self) -> int:
        """One behind the position of the last token."""
        return self.token_start + self.token_count

    def crosses(self, end: int) -> bool:
        """Whether the rows reach the end of the layers before `end` in this step."""
        return self.layer_start < end <= self.layer_end


class StepPlan(msgspec.Struct, frozen=True):
    """Everything one engine step executes.

    Attributes:
        row_groups: the rows, decode groups first.
        receive: requests whose blocks are reserved and whose KV another worker shall send.
        preempted: requests that lost their blocks to make room; they are computed again later.
        layer_groups: into how many groups the layers are cut for the prompts of this plan that
            begin to cross them; policies find it again in `Request.wave`.
        idle_until: a plan without rows is made again at this time if nothing happens before.
    """

    row_groups: tuple[RowGroup, ...] = ()
    receive: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    layer_groups: int = 1
    idle_until: float | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the flat batch."""
        return sum(group.token_count for group in self.row_groups)
