"""vLLM's `/tokenize` and `/detokenize` requests."""

from typing import Annotated

from pydantic import Field

from twinflow.cluster.gateway.backend import ModelInfo
from twinflow.cluster.gateway.validation import unsupported
from twinflow.cluster.gateway.validation.chat import Messages, chat_messages
from twinflow.cluster.gateway.validation.request import (
    ChatPrompt,
    DetokenizeRequest,
    TextPrompt,
    TokenizeRequest,
    build_detokenize,
    build_tokenize,
)
from twinflow.cluster.gateway.validation.strict import StrictModel, require_object, validated
from twinflow.protos.errors import InvalidRequest


class TokenizeFields(StrictModel):
    """The body of `POST /tokenize`: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeFields(StrictModel):
    """The body of `POST /detokenize`."""

    model: str | None = None
    tokens: Annotated[list[int], Field(fail_fast=True)]


def parse_tokenize(document: object, served: ModelInfo) -> TokenizeRequest:
    """Read a request for tokens.

    A conversation gets no special tokens unless asked for, because its template has them.

    Raises:
        ModelNotFound: no model of that name is served.
        InvalidRequest: names the field at fault.
    """
    body = require_object(document)
    unsupported.refuse_unsupported(body, unsupported.TOKENIZE)
    fields = validated(TokenizeFields, body)
    if (fields.prompt is None) == (fields.messages is None):
        raise InvalidRequest("Exactly one of prompt and messages is required.", "prompt")
    prompt: TextPrompt | ChatPrompt
    if fields.messages is not None:
        prompt = ChatPrompt(chat_messages(fields.messages))
    else:
        prompt = TextPrompt(fields.prompt or "")
    special = fields.add_special_tokens
    request = TokenizeRequest(
        prompt,
        add_special_tokens=fields.messages is None if special is None else special,
        add_generation_prompt=fields.add_generation_prompt is not False,
        return_token_strs=bool(fields.return_token_strs),
    )
    return build_tokenize(served, fields.model, request)


def parse_detokenize(document: object, served: ModelInfo) -> DetokenizeRequest:
    """Read a request for text.

    Raises:
        ModelNotFound: no model of that name is served.
        InvalidRequest: names the field at fault.
    """
    fields = validated(DetokenizeFields, require_object(document))
    return build_detokenize(served, fields.model, tuple(fields.tokens))
