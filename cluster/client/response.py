"""From the messages of `inference.proto` to what callers get."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from twinflow.protos.errors import ServerError
from twinflow.protos.twinflow.v1 import inference_pb2 as pb
from twinflow.runtime.outputs import (
    CompletionOutput,
    FinishReason,
    PhaseTime,
    RequestOutput,
    TokenLogprobs,
)
from twinflow.runtime.speculative.account import SpeculationAccount


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that a request cost.

    Attributes:
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of all completions together.
        cached_tokens: those of the prompt that were found in a prefix cache.
        speculation: what became of tokens proposed to all completions; None if none were.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    speculation: SpeculationAccount | None = None


@dataclass(frozen=True, slots=True)
class TextChunk:
    """New output of one completion since its last chunk.

    Attributes:
        request_id: made by the server.
        index: number of the completion among the n of the request.
        text: what is new; empty in the last chunk.
        token_ids: tokens of the text.
        logprobs: one entry per token, if asked for.
        finish_reason: why the completion ended, in its last chunk.
        stop_reason: the stop string or stop token that ended it, in its last chunk.
        usage: in the last chunk of the stream.
        phases: in the last chunk of the stream, where the time went, if asked for.
    """

    request_id: str
    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
    phases: tuple[PhaseTime, ...] = ()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of its model.

    Attributes:
        model: the name that requests use.
        root: checkpoint that it was loaded from.
        max_model_len: longest sequence, prompt and output together.
        vocab_size: tokens of the vocabulary.
        dtype: dtype of the weights as served.
        block_size: token slots of a KV block.
        version: the server's version of twinflow.
    """

    model: str
    root: str
    max_model_len: int
    vocab_size: int
    dtype: str
    block_size: int
    version: str


_Ended: TypeAlias = pb.Completion | pb.CompletionEnd


class ChunkReader:
    """Reads the messages of one stream."""

    def __init__(self) -> None:
        self._complete = False

    def chunks(self, response: pb.GenerateStreamResponse) -> Iterable[TextChunk]:
        """The chunks that a message stands for; none for kinds that are newer than this client."""
        kind = response.WhichOneof("response")
        if kind == "chunk":
            chunk = response.chunk
            yield TextChunk(
                response.request_id,
                chunk.index,
                chunk.text,
                tuple(chunk.token_ids),
                _logprobs(chunk.logprobs),
            )
        elif kind == "complete":
            self._complete = True
            yield from self._ends(response.request_id, response.complete)

    @staticmethod
    def _ends(request_id: str, complete: pb.GenerateComplete) -> Iterable[TextChunk]:
        for number, end in enumerate(complete.ends, start=1):
            last = number == len(complete.ends)
            yield TextChunk(
                request_id,
                end.index,
                finish_reason=_finish_reason(end),
                stop_reason=_stop_reason(end),
                usage=_usage(complete.usage) if last else None,
                phases=_phases(complete.timeline) if last else (),
            )

    def check_complete(self) -> None:
        """Raise ServerError if the stream ended without its last message."""
        if not self._complete:
            raise ServerError("The stream ended before the answer was complete.")


def request_output(response: pb.GenerateResponse, prompt: str | None) -> RequestOutput:
    """A finished request."""
    return RequestOutput(
        request_id=response.request_id,
        prompt=prompt,
        prompt_token_ids=tuple(response.prompt_token_ids),
        outputs=tuple(_completion(completion) for completion in response.completions),
        cached_tokens=response.usage.cached_tokens,
        speculation=_speculation(response.usage),
        phases=_phases(response.timeline),
    )


def served_model(response: pb.GetModelInfoResponse) -> ServedModel:
    """The description of the model."""
    return ServedModel(
        model=response.model,
        root=response.root,
        max_model_len=response.max_model_len,
        vocab_size=response.vocab_size,
        dtype=response.dtype,
        block_size=response.block_size,
        version=response.version,
    )


def _completion(completion: pb.Completion) -> CompletionOutput:
    return CompletionOutput(
        index=completion.index,
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        logprobs=_logprobs(completion.logprobs),
        finish_reason=_finish_reason(completion),
        stop_reason=_stop_reason(completion),
    )


def _finish_reason(ended: _Ended) -> FinishReason:
    try:
        name = pb.FinishReason.Name(ended.finish_reason)
        return FinishReason[name.removeprefix("FINISH_REASON_")]
    except (KeyError, ValueError):  # unspecified, or newer than this client
        raise ServerError(
            f"The server ended a completion for an unknown reason ({ended.finish_reason})."
        ) from None


def _stop_reason(ended: _Ended) -> str | int | None:
    match ended.WhichOneof("stop_reason"):
        case "stop_string":
            return ended.stop_string
        case "stop_token_id":
            return ended.stop_token_id
        case _:
            return None


def _logprobs(entries: Iterable[pb.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(
            entry.sampled.token_id,
            entry.sampled.logprob,
            tuple((token.token_id, token.logprob) for token in entry.top),
        )
        for entry in entries
    )


def _usage(usage: pb.Usage) -> Usage:
    return Usage(
        usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, _speculation(usage)
    )


def _speculation(usage: pb.Usage) -> SpeculationAccount | None:
    if not usage.HasField("speculation"):
        return None
    told = usage.speculation
    return SpeculationAccount(
        told.drafts, told.draft_tokens, told.accepted_tokens, list(told.accepted_at)
    )


def _phases(timeline: pb.Timeline) -> tuple[PhaseTime, ...]:
    return tuple(PhaseTime(phase.name, phase.seconds) for phase in timeline.phases)
