"""The one strict validator behind both front doors.

    HTTP:  bytes ─ parse_json ─► object ─ parse_chat / parse_completion ─┐
    gRPC:  protobuf message ────────────────────────────────────────────┴─► build_request

`parse_json` and the pydantic models know the shape of OpenAI's JSON and nothing about bounds.
`build_request` and `SamplingParams` hold every bound, so that no front door lets through what the
other refuses. Nothing here tokenises, renders a template or looks at a worker.
"""

from twinflow.cluster.gateway.validation.chat import parse_chat
from twinflow.cluster.gateway.validation.completion import parse_completion
from twinflow.cluster.gateway.validation.json_document import parse_json
from twinflow.cluster.gateway.validation.request import (
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
    fit_to_context,
)
from twinflow.cluster.gateway.validation.tokenization import parse_detokenize, parse_tokenize

__all__ = [
    "ChatMessage",
    "ChatPrompt",
    "DetokenizeRequest",
    "GenerationRequest",
    "Prompt",
    "RequestOptions",
    "TextPrompt",
    "TokenPrompt",
    "TokenizeRequest",
    "build_detokenize",
    "build_request",
    "build_tokenize",
    "fit_to_context",
    "parse_chat",
    "parse_completion",
    "parse_detokenize",
    "parse_json",
    "parse_tokenize",
]
