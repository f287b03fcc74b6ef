"""From the messages of `inference.proto` to the requests of the one validator.

Only shapes are read here; every bound is the validator's, so that a request has the same verdict
as its JSON twin. Errors name fields as JSON does, which for nearly all is as the message does.
"""

from typing import Any

from google.protobuf.message import Message

from twinflow.cluster.gateway.backend import ModelInfo
from twinflow.cluster.gateway.validation import (
    ChatMessage,
    ChatPrompt,
    DetokenizeRequest,
    GenerationRequest,
    Prompt,
    RequestOptions,
    TextPrompt,
    TokenizeRequest,
    TokenPrompt,
    build_detokenize,
    build_request,
    build_tokenize,
)
from twinflow.protos.errors import InvalidRequest
from twinflow.protos.twinflow.v1 import inference_pb2 as pb


def read_generation(
    request: pb.GenerateRequest | pb.GenerateStreamRequest, served: ModelInfo
) -> GenerationRequest:
    """Read a request to generate.

    Raises:
        ModelNotFound: no model of that name is served.
        InvalidRequest: names the field that is missing, out of bounds or not supported.
    """
    if not request.HasField("input"):
        raise InvalidRequest("input is required.", "input")
    given = request.input
    if not given.model:
        raise InvalidRequest("model is required.", "model")
    sampling = _set_fields(given.sampling) | _set_fields(given.stopping)
    sampling.setdefault("max_tokens", None)
    if given.response.HasField("logprobs"):
        sampling["logprobs"] = given.response.logprobs
    options = RequestOptions(
        priority=given.priority,
        cache_salt=given.cache_salt,
        stream=isinstance(request, pb.GenerateStreamRequest),
        return_token_ids=given.response.return_token_ids,
        return_timeline=given.response.return_timeline,
    )
    return build_request(served, given.model, (_prompt(given),), sampling, options)


def read_tokenize(request: pb.TokenizeRequest, served: ModelInfo) -> TokenizeRequest:
    """Read a request for tokens; without a model it means the served one.

    Raises:
        ModelNotFound: no model of that name is served.
        InvalidRequest: names the field at fault.
    """
    prompt: TextPrompt | ChatPrompt
    match request.WhichOneof("input"):
        case "text":
            prompt = TextPrompt(request.text)
        case "chat":
            prompt = _chat(request.chat)
        case _:
            raise InvalidRequest("Exactly one of text and chat is required.", "prompt")
    special = isinstance(prompt, TextPrompt)
    if request.HasField("add_special_tokens"):
        special = request.add_special_tokens
    return build_tokenize(served, request.model or None, TokenizeRequest(prompt, special))


def read_detokenize(request: pb.DetokenizeRequest, served: ModelInfo) -> DetokenizeRequest:
    """Read a request for text; without a model it means the served one.

    Raises:
        ModelNotFound: no model of that name is served.
        InvalidRequest: names the field at fault.
    """
    return build_detokenize(served, request.model or None, tuple(request.token_ids))


def _prompt(given: pb.GenerationInput) -> Prompt:
    match given.WhichOneof("prompt"):
        case "text":
            return TextPrompt(given.text)
        case "token_ids":
            return TokenPrompt(tuple(given.token_ids.ids))
        case "chat":
            return _chat(given.chat)
        case _:
            raise InvalidRequest("One of text, token_ids and chat is required.", "prompt")


def _chat(chat: pb.Chat) -> ChatPrompt:
    return ChatPrompt(
        tuple(
            ChatMessage(m.role, m.content, m.name if m.HasField("name") else None)
            for m in chat.messages
        )
    )


def _set_fields(message: Message) -> dict[str, Any]:
    """The fields that a message sets, by name, as `SamplingParams` takes them."""
    found = {field.name: value for field, value in message.ListFields()}
    for name, plain in (("logit_bias", dict), ("stop", tuple), ("stop_token_ids", tuple)):
        if name in found:
            found[name] = plain(found[name])
    return found
