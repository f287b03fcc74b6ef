"""Routes that turn text into tokens or tokens into text."""

import msgspec
from fastapi import Request
from fastapi.responses import Response

import twinflow
from twinflow.cluster.gateway.http.answer import AnswerResponse
from twinflow.cluster.gateway.http.answer_format import AnswerHead
from twinflow.cluster.gateway.http.body import read_json
from twinflow.cluster.gateway.http.chat_format import ChatFormat
from twinflow.cluster.gateway.http.completion_format import CompletionFormat
from twinflow.cluster.gateway.http.dependencies import HttpDependencies
from twinflow.cluster.gateway.http.gate import call_of
from twinflow.cluster.gateway.http.ignored_fields import IgnoredFields
from twinflow.cluster.gateway.http.schema import DetokenizeBody, TokenizeBody
from twinflow.cluster.gateway.intake import Intake, IntakeLimits
from twinflow.cluster.gateway.validation import (
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_tokenize,
    unsupported,
)
from twinflow.cluster.gateway.validation.chat import ChatFields
from twinflow.cluster.gateway.validation.completion import CompletionFields
from twinflow.cluster.gateway.validation.tokenization import DetokenizeFields, TokenizeFields

_FINGERPRINT = f"twinflow-{twinflow.__version__}"


class InferenceRoutes:
    """Endpoints; see OpenAI's and vLLM's documentation for their bodies."""

    def __init__(self, dependencies: HttpDependencies) -> None:
        self._pipeline = dependencies.pipeline
        self._wall_clock = dependencies.wall_clock
        self._ignored = IgnoredFields(dependencies.pipeline.clock)
        config = dependencies.config
        self._max_body_bytes = config.max_body_bytes
        self._bodies = Intake(
            IntakeLimits(config.max_connections, config.max_bodies_bytes),
            "bytes of request bodies",
            dependencies.pipeline.count_rejection,
        )

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        document = await self._json(request)
        parsed = parse_chat(document, self._pipeline.model)
        head = self._head(request, "chatcmpl")
        answer_format = ChatFormat(head, parsed.options, self._pipeline.codec.tokenizer)
        headers = self._ignored.headers(document, ChatFields, unsupported.CHAT)
        return AnswerResponse(self._pipeline, parsed, call_of(request), answer_format, headers)

    async def completion(self, request: Request) -> Response:
        """Continue one or more prompts."""
        document = await self._json(request)
        parsed = parse_completion(document, self._pipeline.model)
        head = self._head(request, "cmpl")
        answer_format = CompletionFormat(head, parsed.options, self._pipeline.codec.tokenizer)
        headers = self._ignored.headers(document, CompletionFields, unsupported.COMPLETION)
        return AnswerResponse(self._pipeline, parsed, call_of(request), answer_format, headers)

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text or a conversation."""
        served = self._pipeline.model
        document = await self._json(request)
        parsed = parse_tokenize(document, served)
        tokens = await self._pipeline.tokenize(parsed)
        texts = None
        if parsed.return_token_strs:
            texts = [self._pipeline.codec.tokenizer.token_text(token) for token in tokens]
        body = TokenizeBody(len(tokens), served.max_model_len, tokens, texts)
        headers = self._ignored.headers(document, TokenizeFields, unsupported.TOKENIZE)
        return _json_response(body, headers)

    async def detokenize(self, request: Request) -> Response:
        """The text of tokens."""
        document = await self._json(request)
        parsed = parse_detokenize(document, self._pipeline.model)
        body = DetokenizeBody(await self._pipeline.detokenize(parsed))
        return _json_response(body, self._ignored.headers(document, DetokenizeFields, {}))

    async def _json(self, request: Request) -> object:
        return await read_json(request, self._max_body_bytes, self._bodies)

    def _head(self, request: Request, prefix: str) -> AnswerHead:
        answer_id = f"{prefix}-{call_of(request).request_id}"
        return AnswerHead(answer_id, int(self._wall_clock()), _FINGERPRINT)


def _json_response(body: msgspec.Struct, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")
