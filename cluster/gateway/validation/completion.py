"""OpenAI's completion request: one or many prompts, as text or as token ids."""

from typing import Any

from twinflow.cluster.gateway.backend import ModelInfo
from twinflow.cluster.gateway.validation import unsupported
from twinflow.cluster.gateway.validation.request import (
    MAX_PROMPTS,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
    build_request,
)
from twinflow.cluster.gateway.validation.sampling_fields import SamplingFields
from twinflow.cluster.gateway.validation.strict import Int64, require_object, validated
from twinflow.protos.errors import InvalidRequest


class CompletionFields(SamplingFields):
    """The body of `POST /v1/completions`; `prompt` has four shapes, see `_prompts`."""

    prompt: object
    best_of: Int64 | None = None
    logprobs: Int64 | None = None


def parse_completion(document: object, served: ModelInfo) -> GenerationRequest:
    """Read a completion request.

    Raises:
        ModelNotFound: no model of that name is served.
        InvalidRequest: names the field that is missing, of the wrong type, out of bounds or not
            supported.
    """
    body = require_object(document)
    unsupported.refuse_unsupported(body, unsupported.COMPLETION)
    fields = validated(CompletionFields, body)
    if fields.best_of is not None and fields.best_of < (fields.n or 1):
        raise InvalidRequest("best_of must not be below n; leave it out.", "best_of")
    sampling: dict[str, Any] = fields.sampling()
    if fields.logprobs is not None:
        sampling["logprobs"] = fields.logprobs
    prompts = _prompts(fields.prompt)
    return build_request(served, fields.model, prompts, sampling, fields.options())


def _prompts(value: object) -> tuple[Prompt, ...]:
    """A string, a list of strings, a list of token ids or a list of lists of token ids."""
    if isinstance(value, str):
        return (TextPrompt(value),)
    if isinstance(value, list):
        if len(value) > MAX_PROMPTS and type(value[0]) is not int:
            raise InvalidRequest(f"A request has between 1 and {MAX_PROMPTS} prompts.", "prompt")
        kinds = {type(item) for item in value}
        if kinds == {str}:
            return tuple(TextPrompt(item) for item in value)
        if kinds == {int}:
            return (TokenPrompt(tuple(value)),)
        if kinds == {list}:
            return tuple(_token_prompt(item) for item in value)
        if not kinds:
            raise InvalidRequest("prompt must not be empty.", "prompt")
    raise InvalidRequest(
        "prompt must be a string, a list of strings, a list of token ids or a list of lists of "
        "token ids.",
        "prompt",
    )


def _token_prompt(value: list[object]) -> TokenPrompt:
    token_ids = tuple(item for item in value if type(item) is int)
    if len(token_ids) != len(value):
        raise InvalidRequest("A prompt given as a list must hold token ids only.", "prompt")
    return TokenPrompt(token_ids)
