"""From what a caller says to the messages of `inference.proto`.

The bounds of sampling parameters are theirs to check; everything that depends on the model is the
server's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NotRequired, TypedDict

from twinflow.protos.errors import InvalidRequest
from twinflow.protos.twinflow.v1 import inference_pb2 as pb
from twinflow.runtime.sampling_params import SamplingParams


class ChatMessage(TypedDict):
    """A message of a conversation: role `system`, `user` or `assistant`, its text, who speaks."""

    role: str
    content: str
    name: NotRequired[str]


class SamplingFields(TypedDict, total=False):
    """The fields of `SamplingParams`, as keyword arguments; lists and single stops will do."""

    n: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    max_tokens: int | None
    min_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop_str_in_output: bool
    logprobs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What a request may ask for besides tokens.

    Attributes:
        model: name of the model; None is the one that the server has.
        timeout_s: deadline of the call; None is the client's own.
        priority: lower runs first.
        cache_salt: requests with different salts share no cached prefix.
        timeline: ask where the time went.
    """

    model: str | None = None
    timeout_s: float | None = None
    priority: int = 0
    cache_salt: str = ""
    timeline: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """What to continue or answer: exactly one of a text, token ids and a conversation."""

    prompt: str | None = None
    token_ids: Sequence[int] | None = None
    messages: Sequence[ChatMessage] | None = None

    def __post_init__(self) -> None:
        given = (self.prompt, self.token_ids, self.messages)
        if sum(value is not None for value in given) != 1:
            raise InvalidRequest("Give exactly one of prompt, token_ids and messages.", "prompt")

    def fields(self) -> dict[str, Any]:
        """The member of the `prompt` oneof, by name."""
        if self.prompt is not None:
            return {"text": self.prompt}
        if self.token_ids is not None:
            return {"token_ids": pb.TokenIds(ids=self.token_ids)}
        messages = [pb.ChatMessage(**message) for message in self.messages or ()]
        return {"chat": pb.Chat(messages=messages)}


@dataclass(frozen=True, slots=True)
class Generation:
    """A request to generate, complete but for the name of the model."""

    source: Source
    params: SamplingParams
    options: CallOptions

    def input(self, model: str) -> pb.GenerationInput:
        """The message for the model of that name.

        Raises:
            InvalidRequest: a value that no message can carry.
        """
        options = self.options
        with _encodable():
            return pb.GenerationInput(
                model=model,
                sampling=pb.SamplingParams(**_same_fields(pb.SamplingParams, self.params)),
                stopping=pb.StopCriteria(**_same_fields(pb.StopCriteria, self.params)),
                response=pb.ResponseOptions(
                    logprobs=self.params.logprobs,
                    return_token_ids=True,
                    return_timeline=options.timeline,
                ),
                priority=options.priority,
                cache_salt=options.cache_salt,
                **self.source.fields(),
            )


def generation(
    source: Source,
    params: SamplingParams | None,
    options: CallOptions | None,
    sampling: Mapping[str, Any],
) -> Generation:
    """A request to generate; `sampling` changes single fields of `params`.

    Raises:
        InvalidRequest: a sampling parameter out of bounds.
    """
    changes = dict(sampling)
    for name in ("stop", "stop_token_ids"):
        if name in changes:
            value = changes[name]
            changes[name] = (value,) if isinstance(value, str) else tuple(value)
    chosen = replace(params or SamplingParams(), **changes)
    return Generation(source, chosen, options or CallOptions())


def tokenize_request(
    source: Source, model: str | None, add_special_tokens: bool | None
) -> pb.TokenizeRequest:
    """The message that asks for the tokens of a text or a conversation.

    Raises:
        InvalidRequest: a value that no message can carry.
    """
    with _encodable():
        return pb.TokenizeRequest(
            model=model, add_special_tokens=add_special_tokens, **source.fields()
        )


def detokenize_request(token_ids: Sequence[int], model: str | None) -> pb.DetokenizeRequest:
    """The message that asks for the text of tokens.

    Raises:
        InvalidRequest: a value that no message can carry.
    """
    with _encodable():
        return pb.DetokenizeRequest(model=model, token_ids=token_ids)


def _same_fields(message: type[Any], params: SamplingParams) -> dict[str, Any]:
    """The sampling parameters that a message has under the same name."""
    return {name: getattr(params, name) for name in message.DESCRIPTOR.fields_by_name}


@contextmanager
def _encodable() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:  # negative token, lone surrogate, unknown key, ...
        raise InvalidRequest(f"The request cannot be encoded: {error}.") from None
