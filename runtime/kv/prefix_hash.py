"""Names for prefixes: a hash chain over full blocks of tokens.

    h_0 = H(root, tokens of block 0)        h_i = H(h_{i-1}, tokens of block i)

The root holds everything besides the tokens that decides the bytes of a block: model, KV layout
and the caller's salt. Two blocks with the same name therefore hold the same KV. Collisions must
not happen by chance or by intent, so the hash is cryptographic.
"""

import hashlib
from array import array
from collections.abc import Callable, Sequence

DIGEST_BYTES = 16


def prefix_root(model_fingerprint: str, layout_digest: str, cache_salt: str) -> bytes:
    """The start of all chains of one model, KV layout and salt."""
    fields = (model_fingerprint, layout_digest, cache_salt)
    text = "\0".join(f"{len(field)}:{field}" for field in fields)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def extend_chain(
    root: bytes,
    chain: list[bytes],
    tokens: Callable[[int, int], Sequence[int]],
    *,
    num_blocks: int,
    block_size: int,
) -> None:
    """Append names to `chain` until it names the first `num_blocks` blocks of a sequence.

    Args:
        root: name of the empty prefix.
        chain: names of the first blocks; extended in place.
        tokens: `tokens(start, count)` gives a range of the sequence's tokens.
        num_blocks: full blocks to name.
        block_size: tokens of a block.
    """
    previous = chain[-1] if chain else root
    for index in range(len(chain), num_blocks):
        block = array("I", tokens(index * block_size, block_size))
        previous = hashlib.blake2b(previous + block.tobytes(), digest_size=DIGEST_BYTES).digest()
        chain.append(previous)
