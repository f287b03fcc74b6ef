"""What must hold of every step that verifies proposals, checked before it is computed.

The invariants of batched speculation (Zhang et al., arXiv 2510.22876), as far as a step can break
them; what must hold between steps is `Proposals.check_integrity`'s. Slow, and for tests: a step
that breaks one is a bug of the engine, never of a request.
"""

from collections.abc import Sequence

from twinflow.runtime.executor import Work
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.tree_branches import TreeBranch

# Block and slot in it.
_Slot = tuple[int, int]


def check_step(work: Sequence[Work], blocks: BlockManager) -> None:
    """Raise AssertionError with the first row group that breaks an invariant.

    Args:
        work: of a step that is about to be computed.
        blocks: of the engine.
    """
    written: dict[_Slot, str] = {}
    for item in work:
        if not item.group.drafted:
            continue
        name = item.request.request_id
        _check_lengths(item)
        slots = _slots(item, blocks.block_size)
        _check_paths(item, slots, blocks.block_size)
        for slot in slots:
            if written.setdefault(slot, name) != name:
                raise AssertionError(f"requests {written[slot]} and {name} write the slot {slot}")
        shared = [block for block in {block for block, _ in slots} if not blocks.is_private(block)]
        if shared:
            raise AssertionError(
                f"request {name} writes proposals to blocks {sorted(shared)}, which others may read"
            )


def _check_lengths(item: Work) -> None:
    """Everything but the newest token has KV, and no proposal is longer than is of use."""
    request, name = item.request, item.request.request_id
    if not request.num_computed == request.num_tokens - 1 == item.group.token_start:
        raise AssertionError(
            f"request {name} has {request.num_tokens} tokens and KV of {request.num_computed}, and "
            f"its rows begin at {item.group.token_start}"
        )
    if len(item.draft) != item.group.drafted:
        raise AssertionError(f"request {name} has rows for {item.group.drafted} other nodes")
    if request.num_tokens + item.draft.depth >= request.max_total_tokens:
        raise AssertionError(f"request {name} has a proposal behind its last token")


def _slots(item: Work, block_size: int) -> dict[_Slot, int]:
    """Which node each slot gets; no slot gets two."""
    slots: dict[_Slot, int] = {}
    rows: list[int] = []
    for branch in _branches(item):
        above = [rows[len(rows) - distance] for distance in branch.ancestors]
        first = branch.start - len(above)
        for position, node in enumerate((*above, *branch.nodes), first):
            slot = (branch.blocks[position // block_size], position % block_size)
            if slots.setdefault(slot, node) != node:
                raise AssertionError(f"nodes {slots[slot]} and {node} are both written to {slot}")
        rows += branch.nodes
    if sorted(rows) != list(range(1 + len(item.draft))):
        raise AssertionError(f"request {item.request.request_id} has rows {rows} for its nodes")
    return slots


def _check_paths(item: Work, slots: dict[_Slot, int], block_size: int) -> None:
    """A row sees its own sequence and its own ancestors, each at its own position."""
    root = item.group.token_start
    own = item.blocks[: root // block_size]
    for branch in _branches(item):
        leaf = branch.nodes[-1]
        if list(branch.blocks[: len(own)]) != list(own):
            raise AssertionError(f"the branch to node {leaf} has lost blocks of its sequence")
        for position, node in enumerate((0, *item.draft.path(leaf)), root):
            slot = (branch.blocks[position // block_size], position % block_size)
            if slots.get(slot) != node:
                raise AssertionError(
                    f"node {leaf} would see node {slots.get(slot)} at position {position}, and not "
                    f"its ancestor {node}"
                )


def _branches(item: Work) -> Sequence[TreeBranch]:
    """The branches of a proposal; a chain is one."""
    nodes = tuple(range(1 + len(item.draft)))
    return item.branches or (TreeBranch(nodes, item.group.token_start, tuple(item.blocks)),)
