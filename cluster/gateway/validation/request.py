"""Requests as both front doors build them, and every bound that is not `SamplingParams`' own.

A value of these types has been checked against the served model, except for what only tokenising
can tell: `fit_to_context` checks that. No text is rendered or tokenised here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from twinflow.cluster.gateway.backend import ModelInfo
from twinflow.protos.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from twinflow.runtime.sampling_params import MAX_COMPLETIONS, SamplingParams, check_range

MAX_MESSAGES = 1024
MAX_PROMPTS = 128
# Completions of all prompts of a request together: a request may not fill the queues alone.
MAX_SEQUENCES = MAX_COMPLETIONS
MAX_CACHE_SALT = 256
MAX_NAME = 64
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation.

    Attributes:
        role: a member of `ROLES`.
        content: its text; may be empty unless the role is `user`.
        name: who speaks, for templates that tell participants apart.
    """

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to continue."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Tokens to continue."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation to answer."""

    messages: tuple[ChatMessage, ...]


Prompt: TypeAlias = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """What a request asks for besides tokens.

    Attributes:
        priority: lower runs first.
        cache_salt: requests with different salts share no cached prefix.
        stream: send text as it is produced.
        include_usage: end a stream with a chunk that carries the usage.
        return_token_ids: send the tokens beside the text.
        return_timeline: say where the time went.
    """

    priority: int = 0
    cache_salt: str = ""
    stream: bool = False
    include_usage: bool = False
    return_token_ids: bool = False
    return_timeline: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request to generate: `len(prompts) * params.n` sequences.

    Attributes:
        model: the name the caller used for the served model.
        prompts: what to continue or answer.
        params: `max_tokens` of None means up to the end of the context.
        options: everything else.
    """

    model: str
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    options: RequestOptions = RequestOptions()


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """A request for the tokens of a prompt.

    Attributes:
        prompt: text or a conversation.
        add_special_tokens: add the tokens that the tokenizer puts round a text.
        add_generation_prompt: end a conversation with the header of the answer.
        return_token_strs: send the text of each token too.
    """

    prompt: TextPrompt | ChatPrompt
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False


@dataclass(frozen=True, slots=True)
class DetokenizeRequest:
    """A request for the text of tokens; no token at all is the empty text."""

    token_ids: tuple[int, ...]


def build_request(
    served: ModelInfo,
    model: str,
    prompts: tuple[Prompt, ...],
    sampling: Mapping[str, Any],
    options: RequestOptions,
) -> GenerationRequest:
    """Check everything that can be checked without tokenising.

    Args:
        served: the model behind the front door.
        model: the name the caller used.
        prompts: between 1 and `MAX_PROMPTS`.
        sampling: arguments of `SamplingParams` that the caller set; the others take its defaults.
        options: everything else.

    Raises:
        ModelNotFound: no model of that name is served.
        InvalidRequest: names the field that is out of bounds.
    """
    check_model(served, model)
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise InvalidRequest(f"A request has between 1 and {MAX_PROMPTS} prompts.", "prompt")
    for prompt in prompts:
        _check_prompt(served, prompt)
    params = SamplingParams(**sampling)
    params.check_vocabulary(served.vocab_size)
    if params.n * len(prompts) > MAX_SEQUENCES:
        raise InvalidRequest(f"n times the number of prompts must be at most {MAX_SEQUENCES}.", "n")
    check_range("priority", options.priority, -(2**31), 2**31 - 1)
    if len(options.cache_salt) > MAX_CACHE_SALT:
        raise InvalidRequest(
            f"cache_salt must have at most {MAX_CACHE_SALT} characters.", "cache_salt"
        )
    return GenerationRequest(model, prompts, params, options)


def build_tokenize(
    served: ModelInfo, model: str | None, request: TokenizeRequest
) -> TokenizeRequest:
    """Check a request for tokens; `model` of None means the served one.

    Raises:
        ModelNotFound: no model of that name is served.
        InvalidRequest: a conversation that no template can render.
    """
    if model is not None:
        check_model(served, model)
    if isinstance(request.prompt, ChatPrompt):
        _check_messages(request.prompt.messages)
    return request


def build_detokenize(
    served: ModelInfo, model: str | None, token_ids: tuple[int, ...]
) -> DetokenizeRequest:
    """Check a request for text; `model` of None means the served one.

    Raises:
        ModelNotFound: no model of that name is served.
        InvalidRequest: a token outside the vocabulary.
    """
    if model is not None:
        check_model(served, model)
    _check_tokens(served, token_ids, "tokens")
    return DetokenizeRequest(token_ids)


def check_model(served: ModelInfo, model: str) -> None:
    """Raise ModelNotFound unless `model` is a name of the served model."""
    if model != served.name and model not in served.aliases:
        raise ModelNotFound(
            f"The requested model is not served here; the model is {served.name!r}.", "model"
        )


def fit_to_context(
    params: SamplingParams, prompt_tokens: int, max_model_len: int, field: str = "prompt"
) -> SamplingParams:
    """Fill in `max_tokens` for a prompt, or refuse what does not fit.

    Args:
        params: of the request.
        prompt_tokens: length of the prompt.
        max_model_len: length of the context.
        field: where the prompt came from, for the error.

    Raises:
        ContextLengthExceeded: the prompt leaves no room for a token, or not for `max_tokens`.
        InvalidRequest: `min_tokens` exceeds the room that is left.
    """
    room = max_model_len - prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"The model's context is {max_model_len} tokens and the prompt has {prompt_tokens}; "
            "shorten it so that at least one token can follow.",
            field,
        )
    if params.max_tokens is None:
        return replace(params, max_tokens=room)
    if params.max_tokens > room:
        raise ContextLengthExceeded(
            f"The model's context is {max_model_len} tokens; the prompt has {prompt_tokens} and "
            f"max_tokens asks for {params.max_tokens} more. Lower it or shorten the prompt.",
            "max_tokens",
        )
    return params


def _check_prompt(served: ModelInfo, prompt: Prompt) -> None:
    match prompt:
        case TextPrompt(text):
            if not text:
                raise InvalidRequest("prompt must not be empty.", "prompt")
        case TokenPrompt(token_ids):
            if not token_ids:
                raise InvalidRequest("prompt must not be empty.", "prompt")
            _check_tokens(served, token_ids, "prompt")
        case ChatPrompt(messages):
            _check_messages(messages)


def _check_tokens(served: ModelInfo, token_ids: tuple[int, ...], param: str) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < served.vocab_size):
        raise InvalidRequest(
            f"{param} has a token outside the vocabulary of {served.vocab_size}.", param
        )


def _check_messages(messages: tuple[ChatMessage, ...]) -> None:
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise InvalidRequest(f"messages must have between 1 and {MAX_MESSAGES} items.", "messages")
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidRequest(
                f"The role of a message must be one of {', '.join(ROLES)}; "
                "others are not supported.",
                f"messages.{index}.role",
            )
        if message.role == "user" and not message.content:
            raise InvalidRequest(
                "A message of the user must have content.", f"messages.{index}.content"
            )
        if message.name is not None and not 1 <= len(message.name) <= MAX_NAME:
            raise InvalidRequest(
                f"The name in a message must have between 1 and {MAX_NAME} characters.",
                f"messages.{index}.name",
            )
