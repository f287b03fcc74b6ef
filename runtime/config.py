"""Configuration of an engine, filled in: no `auto`, no None that someone resolves later.

The command line's configuration is `twinflow.cluster.config`; this is what it comes down to.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How one engine schedules and how much memory it has.

    Attributes:
        max_model_len: longest sequence, prompt and output together.
        num_blocks: blocks of the KV cache, the null block included.
        block_size: token slots of a block, a power of two.
        block_shards: ranks that share the blocks of a sequence; an entry of a block table then is
            a block on each of them.
        max_num_seqs: requests that hold blocks at the same time.
        max_num_batched_tokens: rows of a step: decode rows first, prefill chunks fill the rest.
        enable_prefix_caching: reuse the KV of prompts that begin alike.
        scheduler: name of the scheduling policy.
        prefill_order: name of the order in which prompts are computed.
        admission: name of the policy that says when memory lasts for one more request.
        tbt_objective: longest wanted time between two tokens of a request, in seconds; None for
            none.
        ttft_objective: longest wanted time to a first token, in seconds; None for none.
        num_speculative_tokens: most tokens proposed to a request at a time; 0 for no speculation.
        watermark: share of the blocks that admission leaves idle, so that running requests can
            grow for a while before one must be preempted.
        check_steps: check what must hold of proposals before every step; slow, for tests.
        max_step_failures: consecutive failed steps after which the engine gives up.
    """

    max_model_len: int
    num_blocks: int
    block_size: int = 16
    block_shards: int = 1
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 1024
    enable_prefix_caching: bool = True
    scheduler: str = "chunked"
    prefill_order: str = "fcfs"
    admission: str = "aggressive"
    tbt_objective: float | None = None
    ttft_objective: float | None = None
    num_speculative_tokens: int = 0
    watermark: float = 0.01
    check_steps: bool = False
    max_step_failures: int = 3

    def __post_init__(self) -> None:
        for name in ("max_model_len", "block_shards", "max_num_seqs", "max_step_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("tbt_objective", "ttft_objective"):
            objective = getattr(self, name)
            if objective is not None and objective <= 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {objective}")
        if not 0.0 <= self.watermark < 1.0:
            raise ValueError(f"watermark must be at least 0 and below 1, not {self.watermark}")
        check_block_size(self.block_size)
        if self.num_speculative_tokens < 0:
            raise ValueError(
                f"num_speculative_tokens must be at least 0, not {self.num_speculative_tokens}"
            )
        self._check_rows()
        usable = max(0, self.num_blocks - 1)
        capacity = usable * self.entry_tokens
        if capacity < self.max_model_len:
            raise ValueError(
                f"{usable} KV blocks of {self.entry_tokens} tokens hold {capacity} "
                f"tokens, less than max_model_len ({self.max_model_len}): lower --max-model-len "
                f"or raise the KV memory"
            )

    def _check_rows(self) -> None:
        """A step must have rows for all who decode, and for everything proposed to them."""
        needed = self.max_num_seqs * (1 + self.num_speculative_tokens)
        if self.max_num_batched_tokens < needed:
            count = self.num_speculative_tokens
            proposed = f" times 1 + num_speculative_tokens ({count})" if count else ""
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}){proposed}: every running request decodes in "
                f"every step"
            )

    @property
    def entry_tokens(self) -> int:
        """Tokens that an entry of a block table stands for."""
        return self.block_size * self.block_shards


def check_block_size(block_size: int) -> None:
    """Raise ValueError unless the number of token slots of a block is a power of two."""
    if block_size < 1 or block_size & (block_size - 1):
        raise ValueError(f"block_size must be a power of two, not {block_size}")
