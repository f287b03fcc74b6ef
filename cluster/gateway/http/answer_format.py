"""What the two shapes of an answer, chat and completion, have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType

from twinflow.cluster.gateway.generation import CompletionDelta, Generation, Usage
from twinflow.cluster.gateway.http.schema import (
    Answer,
    ChatChoice,
    ChatChunkChoice,
    CompletionChoice,
    CompletionTokensDetails,
    PhaseBody,
    PromptTokensDetails,
    TimelineBody,
    UsageBody,
)
from twinflow.cluster.gateway.text_protocols import Tokenizer
from twinflow.cluster.gateway.timeline import Timeline
from twinflow.cluster.gateway.validation import RequestOptions
from twinflow.runtime.outputs import CompletionOutput
from twinflow.runtime.speculative.account import SpeculationAccount

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What every chunk of an answer repeats.

    Attributes:
        id: the answer's id.
        created: Unix time.
        system_fingerprint: which software answers.
    """

    id: str
    created: int
    system_fingerprint: str


class AnswerFormat(ABC):
    """Formats one answer; holds what a stream has to remember between chunks.

    Args:
        head: of the answer.
        options: of the request.
        tokenizer: for the text of tokens in log probabilities.
    """

    whole_object: str
    chunk_object: str

    def __init__(self, head: AnswerHead, options: RequestOptions, tokenizer: Tokenizer) -> None:
        self._head = head
        self.options = options
        self.tokenizer = tokenizer

    @abstractmethod
    def choice(
        self, output: CompletionOutput, prompt: tuple[int, ...]
    ) -> ChatChoice | CompletionChoice:
        """A finished completion."""

    @abstractmethod
    def chunk_choice(
        self, delta: CompletionDelta, prompt: tuple[int, ...]
    ) -> ChatChunkChoice | CompletionChoice:
        """New output of a completion."""

    def prompt_token_ids(self, generation: Generation) -> tuple[int, ...] | UnsetType:
        """The prompt's tokens, where the shape has them beside the choices."""
        return UNSET

    def whole(self, generation: Generation, outputs: Sequence[CompletionOutput]) -> bytes:
        """The body of a response that is not a stream."""
        choices = [self.choice(output, _prompt(generation, output.index)) for output in outputs]
        return msgspec.json.encode(
            self._answer(
                generation,
                self.whole_object,
                choices,
                usage=usage_body(generation.usage),
                timeline=self._timeline(generation),
                prompt_token_ids=self.prompt_token_ids(generation),
            )
        )

    def frame(self, generation: Generation, delta: CompletionDelta, *, first: bool) -> bytes:
        """The frame of a stream that carries new output; empty if there is nothing to say."""
        if not self._worth_sending(delta):
            return b""
        # With a usage chunk, the timeline comes in that one.
        ends = generation.finished and not self.options.include_usage
        return frame(
            self._answer(
                generation,
                self.chunk_object,
                [self.chunk_choice(delta, _prompt(generation, delta.index))],
                usage=None if self.options.include_usage else UNSET,
                timeline=self._timeline(generation) if ends else UNSET,
                prompt_token_ids=self.prompt_token_ids(generation) if first else UNSET,
            )
        )

    def last_frames(self, generation: Generation) -> bytes:
        """What ends a stream that went well."""
        if not self.options.include_usage:
            return DONE
        answer = self._answer(
            generation,
            self.chunk_object,
            [],
            usage=usage_body(generation.usage),
            timeline=self._timeline(generation),
        )
        return frame(answer) + DONE

    def _worth_sending(self, delta: CompletionDelta) -> bool:
        asked = delta.logprobs or (self.options.return_token_ids and delta.token_ids)
        return bool(delta.text or delta.finish_reason or asked)

    def _timeline(self, generation: Generation) -> TimelineBody | UnsetType:
        return timeline_body(generation.timeline) if self.options.return_timeline else UNSET

    def _answer(
        self,
        generation: Generation,
        kind: str,
        choices: Sequence[ChatChoice | ChatChunkChoice | CompletionChoice],
        usage: UsageBody | UnsetType | None,
        timeline: TimelineBody | UnsetType,
        prompt_token_ids: tuple[int, ...] | UnsetType = UNSET,
    ) -> Answer:
        return Answer(
            id=self._head.id,
            object=kind,
            created=self._head.created,
            model=generation.model,
            system_fingerprint=self._head.system_fingerprint,
            choices=choices,
            usage=usage,
            timeline=timeline,
            prompt_token_ids=prompt_token_ids,
        )


def frame(body: msgspec.Struct) -> bytes:
    """A server-sent event; JSON escapes line breaks, so no text can end it early."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def usage_body(usage: Usage) -> UsageBody:
    """Tokens of a request in OpenAI's shape."""
    return UsageBody(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptTokensDetails(usage.cached_tokens),
        UNSET if usage.speculation is None else _completion_details(usage.speculation),
    )


def _completion_details(account: SpeculationAccount) -> CompletionTokensDetails:
    return CompletionTokensDetails(
        accepted_prediction_tokens=account.accepted_tokens,
        rejected_prediction_tokens=account.draft_tokens - account.accepted_tokens,
        num_drafts=account.drafts,
        accepted_tokens_per_pos=account.accepted_at,
    )


def timeline_body(timeline: Timeline) -> TimelineBody:
    """A timeline as JSON has it."""
    phases = [PhaseBody(phase.name, phase.seconds) for phase in timeline.phases]
    return TimelineBody(phases, timeline.total_seconds)


def _prompt(generation: Generation, index: int) -> tuple[int, ...]:
    return generation.prompts[index // generation.completions_per_prompt]
