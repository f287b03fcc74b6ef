"""OpenAI's chat completion request.

Text only: parts that are images, audio or files are refused, and no URL in a request is ever
fetched.
"""

from typing import Annotated, Any

from pydantic import Field

from twinflow.cluster.gateway.backend import ModelInfo
from twinflow.cluster.gateway.validation import unsupported
from twinflow.cluster.gateway.validation.request import (
    MAX_MESSAGES,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    build_request,
)
from twinflow.cluster.gateway.validation.sampling_fields import SamplingFields, renamed
from twinflow.cluster.gateway.validation.strict import (
    Int64,
    StrictModel,
    require_object,
    validated,
)
from twinflow.protos.errors import InvalidRequest

# `build_request` has the same bound; here it spares reading what is refused anyway.
Messages = Annotated[list[dict[str, object]], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class MessageFields(StrictModel):
    """A message; its content is text or a list of parts."""

    role: str
    content: object = None
    name: str | None = None


class ChatFields(SamplingFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None


def parse_chat(document: object, served: ModelInfo) -> GenerationRequest:
    """Read a chat completion request.

    Raises:
        ModelNotFound: no model of that name is served.
        InvalidRequest: names the field that is missing, of the wrong type, out of bounds or not
            supported.
    """
    body = require_object(document)
    unsupported.refuse_unsupported(body, unsupported.CHAT)
    fields = validated(ChatFields, body)
    aliases = {"logprobs": "top_logprobs"}
    if fields.max_completion_tokens is not None:
        aliases["max_tokens"] = "max_completion_tokens"
    prompt = ChatPrompt(chat_messages(fields.messages))
    sampling, options = _sampling(fields), fields.options()
    with renamed(aliases):
        return build_request(served, fields.model, (prompt,), sampling, options)


def chat_messages(messages: list[dict[str, object]]) -> tuple[ChatMessage, ...]:
    """Read the messages of a conversation.

    Raises:
        InvalidRequest: names the message and the field.
    """
    return tuple(_message(item, f"messages.{index}.") for index, item in enumerate(messages))


def _message(item: dict[str, object], prefix: str) -> ChatMessage:
    unsupported.refuse_unsupported(item, unsupported.MESSAGE, prefix)
    with renamed({name: prefix + name for name in MessageFields.model_fields}):
        fields = validated(MessageFields, item)
    content = fields.content
    if isinstance(content, list):
        # One line per part, as vLLM joins them.
        content = "\n".join(_part_text(part, f"{prefix}content") for part in content)
    if not isinstance(content, str):
        raise InvalidRequest(
            f"{prefix}content must be a string or a list of text parts.", f"{prefix}content"
        )
    return ChatMessage(fields.role, content, fields.name)


def _part_text(part: object, param: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise InvalidRequest(
        f'{param} may only have parts {{"type": "text", "text": "..."}}: images, audio and files '
        "are not supported.",
        param,
    )


def _sampling(fields: ChatFields) -> dict[str, Any]:
    values = fields.sampling()
    if fields.max_completion_tokens is not None:
        if fields.max_tokens not in (None, fields.max_completion_tokens):
            raise InvalidRequest(
                "max_tokens and max_completion_tokens differ; set one of them.", "max_tokens"
            )
        values["max_tokens"] = fields.max_completion_tokens
    values.setdefault("max_tokens", None)
    if fields.logprobs:
        values["logprobs"] = fields.top_logprobs or 0
    elif fields.top_logprobs is not None:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
    return values
