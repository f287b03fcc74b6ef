"""Lays a proposal that branches out over KV blocks: each branch has a block table of its own.

    sequence  a b c ┐                  positions  0 1 2 │ 3 4 5 6       blocks of 4
    nodes           d ─ e ─ f          branch 0   a b c   d│e f         the sequence's own table
                    └── g ─ h          branch 1           d│g h         one block more

A branch is a path of nodes that begins where it leaves an older branch. All blocks before that
place are shared; the one in which it begins is copied, as far as the sequence goes, and nodes that
the branch goes on from are written to it once more by the step that computes them. So every token
lies where it would lie if the branch were the sequence: rows attend to nothing but their ancestors,
in the order and with the rounding of a sequence without proposals, and whichever branch is accepted
becomes the sequence by taking over its table. A chain is one branch and needs none of this.

Arithmetic over tables; computes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.request import Request
from twinflow.runtime.speculative.draft import Draft


@dataclass(frozen=True, slots=True)
class TreeBranch:
    """Rows of a proposal that lie in one block table.

    Attributes:
        nodes: one behind the other; the first branch begins with node 0.
        start: position of the first of them.
        blocks: block table up to the last one.
        ancestors: for each token right before `start` whose KV the step is to write to this table
            as well, in order, how many rows before the first of this branch its row is.
        copied_block: block with the sequence's KV that the block of `start` begins with; 0 if there
            is none to copy.
    """

    nodes: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    ancestors: tuple[int, ...] = ()
    copied_block: int = 0


@dataclass(slots=True)
class _Path:
    """A branch without blocks.

    Attributes:
        nodes: see `TreeBranch`.
        parent: the older branch that it leaves; none for the first one.
        depth: of its first node.
    """

    nodes: list[int]
    parent: int
    depth: int

    @property
    def end(self) -> int:
        """One behind the depth of the last node."""
        return self.depth + len(self.nodes)


def branch_blocks(draft: Draft, root: int, block_size: int) -> tuple[int, int]:
    """What a proposal needs.

    Args:
        draft: at least one node.
        root: position of node 0, the last token of the sequence.
        block_size: tokens of a block.

    Returns:
        Tokens that the sequence's own table must hold, and blocks besides.
    """
    first, *others = _paths(draft)
    return root + first.end, sum(_span(path, root, block_size) for path in others)


def open_branches(blocks: BlockManager, request: Request, draft: Draft) -> tuple[TreeBranch, ...]:
    """Reserve the blocks of all branches.

    Args:
        blocks: has as many idle as `branch_blocks` says.
        request: decodes.
        draft: was proposed to it and is no chain.
    """
    root, size = request.num_tokens - 1, blocks.block_size
    paths = _paths(draft)
    blocks.grow(request.request_id, root + paths[0].end)
    own = tuple(blocks.blocks(request.request_id))
    rows = {node: row for row, node in enumerate(node for path in paths for node in path.nodes)}
    made = [TreeBranch(tuple(paths[0].nodes), root, own)]
    for path in paths[1:]:
        start = root + path.depth
        shared, inside = divmod(start, size)
        table = blocks.branch(
            request.request_id, made[path.parent].blocks[:shared], _span(path, root, size)
        )
        # Of the tokens before it in its first block, those from node 0 on are rows of the step.
        above = (0, *draft.path(path.nodes[0])[:-1])[-inside:] if inside else ()
        first_row = rows[path.nodes[0]]
        ancestors = tuple(first_row - rows[node] for node in above)
        copied = own[shared] if len(ancestors) < inside else 0
        made.append(TreeBranch(tuple(path.nodes), start, tuple(table), ancestors, copied))
    return tuple(made)


def _span(path: _Path, root: int, block_size: int) -> int:
    """Blocks from the first to the last node of a path."""
    return (root + path.end - 1) // block_size - (root + path.depth) // block_size + 1


def _paths(draft: Draft) -> Sequence[_Path]:
    """Cut a proposal into branches: the first child of a node goes on in the node's own."""
    paths = [_Path([0], 0, 0)]
    homes = [0]
    depths = [0]
    for node, parent in enumerate(draft.parents, start=1):
        home = homes[parent]
        depths.append(depths[parent] + 1)
        if paths[home].nodes[-1] == parent:
            paths[home].nodes.append(node)
            homes.append(home)
        else:
            homes.append(len(paths))
            paths.append(_Path([node], home, depths[node]))
    return paths
