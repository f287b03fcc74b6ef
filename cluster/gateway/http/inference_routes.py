"""Routes that turn text into tokens or tokens into text."""

import msgspec
from fastapi import Request
from fastapi.responses import Response

import twinflow
from twinflow.cluster.gateway.http.answer import AnswerResponse
from twinflow.cluster.gateway.http.answer_format import AnswerFormat, AnswerHead
from twinflow.cluster.gateway.http.body import read_json
from twinflow.cluster.gateway.http.chat_format import ChatFormat
from twinflow.cluster.gateway.http.completion_format import CompletionFormat
from twinflow.cluster.gateway.http.dependencies import HttpDependencies
from twinflow.cluster.gateway.http.gate import call_of
from twinflow.cluster.gateway.http.schema import DetokenizeBody, TokenizeBody
from twinflow.cluster.gateway.validation import (
    GenerationRequest,
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_tokenize,
)

_FINGERPRINT = f"twinflow-{twinflow.__version__}"


class InferenceRoutes:
    """Endpoints; see OpenAI's and vLLM's documentation for their bodies."""

    def __init__(self, dependencies: HttpDependencies) -> None:
        self._pipeline = dependencies.pipeline
        self._wall_clock = dependencies.wall_clock
        self._max_body_bytes = dependencies.config.max_body_bytes

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        parsed = parse_chat(await self._json(request), self._pipeline.model)
        return self._answer(request, parsed, ChatFormat, "chatcmpl")

    async def completion(self, request: Request) -> Response:
        """Continue one or more prompts."""
        parsed = parse_completion(await self._json(request), self._pipeline.model)
        return self._answer(request, parsed, CompletionFormat, "cmpl")

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text or a conversation."""
        served = self._pipeline.model
        parsed = parse_tokenize(await self._json(request), served)
        tokens = await self._pipeline.tokenize(parsed)
        texts = None
        if parsed.return_token_strs:
            texts = [self._pipeline.codec.tokenizer.token_text(token) for token in tokens]
        return _json_response(TokenizeBody(len(tokens), served.max_model_len, tokens, texts))

    async def detokenize(self, request: Request) -> Response:
        """The text of tokens."""
        parsed = parse_detokenize(await self._json(request), self._pipeline.model)
        return _json_response(DetokenizeBody(await self._pipeline.detokenize(parsed)))

    async def _json(self, request: Request) -> object:
        return await read_json(request, self._max_body_bytes)

    def _answer(
        self,
        request: Request,
        parsed: GenerationRequest,
        answer_format: type[AnswerFormat],
        prefix: str,
    ) -> Response:
        call = call_of(request)
        head = AnswerHead(f"{prefix}-{call.request_id}", int(self._wall_clock()), _FINGERPRINT)
        tokenizer = self._pipeline.codec.tokenizer
        return AnswerResponse(
            self._pipeline, parsed, call, answer_format(head, parsed.options, tokenizer)
        )


def _json_response(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
