"""What the front doors hand to the dispatcher, and what they get back.

A `GenerationSpec` is a request after validation, templating and tokenisation: nothing in it can
be the caller's mistake any more, except what only the workers' state decides. Front doors never
talk to workers; they hold a `Backend`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from twinflow.runtime.outputs import TokenDelta
from twinflow.runtime.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """One sequence to generate. A request with n completions is n of these.

    Attributes:
        request_id: made by the gateway, unique for each sequence.
        prompt_token_ids: at least one token, within the context.
        params: sampling parameters with n = 1, a seed and max_tokens filled in.
        priority: lower runs first.
        cache_salt: sequences with different salts share no cached prefix.
        deadline_s: time the sequence may take, from now.
        api_key_id: who pays; a digest of the key, never the key.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    deadline_s: float = 600.0
    api_key_id: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is served, as front doors describe it.

    Attributes:
        name: the name requests use.
        aliases: further names that mean the same model.
        root: checkpoint directory.
        max_model_len: longest sequence, prompt and output together.
        vocab_size: tokens of the vocabulary.
        dtype: dtype of the weights as served.
        block_size: token slots of a KV block.
        created: Unix time at which serving started.
    """

    name: str
    root: str
    max_model_len: int
    vocab_size: int
    dtype: str
    block_size: int
    created: int
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LaneInfo:
    """Whether a worker computes prompts and decodes at the same time.

    Attributes:
        wanted: what was asked for.
        backend: what divides its device; `none` if nothing does.
        description: what is divided, and by which rule.
        reason: why nothing divides it although that was asked for.
    """

    wanted: str = ""
    backend: str = ""
    description: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker, as it has described itself; empty as long as it has not.

    Attributes:
        worker_id: unique in the deployment.
        role: which flow requests are sent there for.
        up: whether it is connected.
        ranks: processes that compute the model.
        num_blocks: KV blocks.
        max_num_seqs: requests that it runs at the same time.
        lanes: how it divides its device.
    """

    worker_id: str
    role: str
    up: bool
    ranks: int = 0
    num_blocks: int = 0
    max_num_seqs: int = 0
    lanes: LaneInfo = field(default_factory=LaneInfo)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether everything that is configured works, or else something.

    Attributes:
        ready: a token went through every prefill and decode pair recently.
        reason: what is missing, in one sentence; empty when ready.
        pairs: outcome per pair, `prefill-0→decode-0: ok`.
        degraded: not ready, but a token went through at least one pair.
    """

    ready: bool
    reason: str = ""
    pairs: tuple[str, ...] = ()
    degraded: bool = False

    @property
    def serving(self) -> bool:
        """Whether requests are answered, if need be by a part of the workers."""
        return self.ready or self.degraded


class Backend(Protocol):
    """Runs sequences somewhere; one per gateway."""

    @property
    def model(self) -> ModelInfo:
        """The served model."""
        ...

    def workers(self) -> "tuple[WorkerInfo, ...]":
        """Every worker that is configured."""
        ...

    def admit(self, specs: "tuple[GenerationSpec, ...]") -> None:
        """Reserve room in the bounded queues for all sequences of a request, or for none.

        Raises:
            Overloaded: a bound in requests, tokens or bytes is met (HTTP 429).
            Unavailable: starting, draining or without workers (HTTP 503).
        """
        ...

    def generate(self, spec: GenerationSpec) -> AsyncIterator[TokenDelta]:
        """Stream the tokens of an admitted sequence; the last delta has a finish reason.

        Closing the iterator aborts the sequence and gives its room back. An admitted sequence
        must be passed to `generate` or `release` exactly once.

        Raises:
            ServerError: the sequence was lost; what was yielded before remains true.
        """
        ...

    def release(self, spec: GenerationSpec) -> None:
        """Give back the room of an admitted sequence that will not be generated."""
        ...

    async def readiness(self) -> Readiness:
        """The latest proof that tokens flow; at most a few seconds old."""
        ...

    def alive(self) -> bool:
        """Whether the gateway's own machinery still runs."""
        ...
