"""From what the pipeline produces to the messages of `inference.proto`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import twinflow
from twinflow.cluster.gateway.backend import ModelInfo
from twinflow.cluster.gateway.generation import CompletionDelta, Generation
from twinflow.cluster.gateway.text_protocols import Tokenizer
from twinflow.cluster.gateway.validation import RequestOptions
from twinflow.protos.twinflow.v1 import inference_pb2 as pb
from twinflow.runtime.outputs import CompletionOutput, FinishReason, TokenLogprobs


@dataclass(slots=True)
class ResponseWriter:
    """Writes the answers to one request.

    Attributes:
        request_id: the server's id of the request.
        options: what the request asked for.
        tokenizer: names the tokens of log probabilities.
    """

    request_id: str
    options: RequestOptions
    tokenizer: Tokenizer
    _ends: list[pb.CompletionEnd] = field(default_factory=list)

    def response(
        self, generation: Generation, completions: Sequence[CompletionOutput]
    ) -> pb.GenerateResponse:
        """All of a finished request."""
        return pb.GenerateResponse(
            request_id=self.request_id,
            model=generation.model,
            completions=[self._completion(completion) for completion in completions],
            usage=_usage(generation),
            timeline=self._timeline(generation),
            prompt_token_ids=self._prompt_token_ids(generation),
        )

    def chunk(self, delta: CompletionDelta) -> pb.GenerateStreamResponse | None:
        """New output; None if it has nothing that the request asked for."""
        if delta.finish_reason is not None:
            end = pb.CompletionEnd(
                index=delta.index, finish_reason=_finish_reason(delta.finish_reason)
            )
            _set_stop_reason(end, delta.stop_reason)
            self._ends.append(end)
        chunk = pb.GenerateChunk(
            text=delta.text,
            token_ids=self._token_ids(delta.token_ids),
            logprobs=self._logprobs(delta.logprobs),
        )
        if not chunk.ByteSize():
            return None
        chunk.index = delta.index
        return pb.GenerateStreamResponse(request_id=self.request_id, chunk=chunk)

    def complete(self, generation: Generation) -> pb.GenerateStreamResponse:
        """The last message of a stream."""
        ends = sorted(self._ends, key=lambda end: end.index)
        complete = pb.GenerateComplete(
            model=generation.model,
            ends=ends,
            usage=_usage(generation),
            timeline=self._timeline(generation),
            prompt_token_ids=self._prompt_token_ids(generation),
        )
        return pb.GenerateStreamResponse(request_id=self.request_id, complete=complete)

    def _completion(self, output: CompletionOutput) -> pb.Completion:
        completion = pb.Completion(
            index=output.index,
            text=output.text,
            token_ids=self._token_ids(output.token_ids),
            logprobs=self._logprobs(output.logprobs),
            finish_reason=_finish_reason(output.finish_reason),
        )
        _set_stop_reason(completion, output.stop_reason)
        return completion

    def _token_ids(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        return token_ids if self.options.return_token_ids else ()

    def _prompt_token_ids(self, generation: Generation) -> tuple[int, ...]:
        return self._token_ids(generation.prompts[0])

    def _logprobs(self, entries: Iterable[TokenLogprobs]) -> list[pb.TokenLogprobs]:
        return [
            pb.TokenLogprobs(
                sampled=self._logprob(entry.token_id, entry.logprob),
                top=[self._logprob(token_id, logprob) for token_id, logprob in entry.top],
            )
            for entry in entries
        ]

    def _logprob(self, token_id: int, logprob: float) -> pb.TokenLogprob:
        token = self.tokenizer.token_text(token_id)
        return pb.TokenLogprob(token_id=token_id, logprob=logprob, token=token)

    def _timeline(self, generation: Generation) -> pb.Timeline | None:
        if not self.options.return_timeline:
            return None
        timeline = generation.timeline
        phases = [
            pb.Timeline.Phase(name=phase.name, seconds=phase.seconds) for phase in timeline.phases
        ]
        return pb.Timeline(phases=phases, total_seconds=timeline.total_seconds)


def model_info(served: ModelInfo) -> pb.GetModelInfoResponse:
    """What is served."""
    return pb.GetModelInfoResponse(
        model=served.name,
        root=served.root,
        max_model_len=served.max_model_len,
        vocab_size=served.vocab_size,
        dtype=served.dtype,
        block_size=served.block_size,
        version=twinflow.__version__,
    )


def _usage(generation: Generation) -> pb.Usage:
    usage, account = generation.usage, generation.usage.speculation
    body = pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )
    if account is not None:
        body.speculation.drafts = account.drafts
        body.speculation.draft_tokens = account.draft_tokens
        body.speculation.accepted_tokens = account.accepted_tokens
        body.speculation.accepted_at.extend(account.accepted_at)
    return body


def _finish_reason(reason: FinishReason) -> str:
    """The name of the enum's value; messages take it for the value."""
    return f"FINISH_REASON_{reason.name}"


def _set_stop_reason(
    ended: pb.Completion | pb.CompletionEnd, stop_reason: str | int | None
) -> None:
    if isinstance(stop_reason, str):
        ended.stop_string = stop_reason
    elif stop_reason is not None:
        ended.stop_token_id = stop_reason
