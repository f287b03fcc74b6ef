"""The fields that chat and completion requests share, with OpenAI's and vLLM's names.

Types only; `SamplingParams` and `build_request` check the values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from twinflow.cluster.gateway.validation import unsupported
from twinflow.cluster.gateway.validation.request import RequestOptions
from twinflow.cluster.gateway.validation.strict import Int64, StrictModel, validated
from twinflow.protos.errors import InvalidRequest
from twinflow.runtime.sampling_params import MAX_LOGIT_BIAS

# OpenAI's limits on what callers attach for their own records. twinflow keeps none of it.
MAX_NOTE = 512
MAX_METADATA = 16
ShortText = Annotated[str, Field(max_length=MAX_NOTE)]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _at_most(count: int) -> BeforeValidator:
    """Refuse a larger object before each of its items is looked at, and every error collected."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > count:
            raise ValueError(f"it must have at most {count} items")
        return value

    return BeforeValidator(check)


class StreamOptions(StrictModel):
    """How a stream ends."""

    include_usage: bool | None = None


class SamplingFields(StrictModel):
    """How tokens are chosen, when a completion ends and how it is delivered."""

    model: str
    n: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], _at_most(MAX_LOGIT_BIAS)] | None = None
    seed: Int64 | None = None
    max_tokens: Int64 | None = None
    min_tokens: Int64 | None = None
    stop: Annotated[list[str], Field(fail_fast=True), BeforeValidator(_listed)] | None = None
    stop_token_ids: Annotated[list[Int64], Field(fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    priority: Int64 | None = None
    cache_salt: str | None = None
    stream: bool | None = None
    stream_options: dict[str, object] | None = None
    return_token_ids: bool | None = None
    return_timeline: bool | None = None
    user: ShortText | None = None
    metadata: Annotated[dict[str, ShortText], _at_most(MAX_METADATA)] | None = None

    def sampling(self) -> dict[str, Any]:
        """Arguments of `SamplingParams` that the request sets."""
        values = self.model_dump(include=_SAMPLING_NAMES, exclude_none=True)
        if self.logit_bias is not None:
            values["logit_bias"] = {_token(key): bias for key, bias in self.logit_bias.items()}
        for name in ("stop", "stop_token_ids"):
            if name in values:
                values[name] = tuple(values[name])
        return values

    def options(self) -> RequestOptions:
        """What the request asks for besides tokens."""
        return RequestOptions(
            priority=self.priority or 0,
            cache_salt=self.cache_salt or "",
            stream=bool(self.stream),
            include_usage=self._include_usage(),
            return_token_ids=bool(self.return_token_ids),
            return_timeline=bool(self.return_timeline),
        )

    def _include_usage(self) -> bool:
        if self.stream_options is None:
            return False
        if not self.stream:
            raise InvalidRequest("stream_options needs stream to be true.", "stream_options")
        unsupported.refuse_unsupported(
            self.stream_options, unsupported.STREAM_OPTIONS, "stream_options."
        )
        with renamed({"include_usage": "stream_options.include_usage"}):
            return bool(validated(StreamOptions, self.stream_options).include_usage)


_SAMPLING_NAMES = {
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
}


@contextmanager
def renamed(names: dict[str, str]) -> Iterator[None]:
    """Report errors about a field under the name that the caller used for it."""
    try:
        yield
    except InvalidRequest as error:
        if error.param not in names:
            raise
        name = names[error.param]
        raise type(error)(error.message.replace(error.param, name), name) from None


def _token(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10):
        raise InvalidRequest("The keys of logit_bias must be token ids.", "logit_bias")
    return int(key)
