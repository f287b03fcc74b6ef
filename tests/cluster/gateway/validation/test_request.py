"""Bounds of requests, as any front door meets them. Types are the HTTP door's tests."""

from typing import Any

import pytest
from tests.support.fake_backend import fake_model

from twinflow.cluster.gateway.validation import (
    ChatMessage,
    ChatPrompt,
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
from twinflow.protos.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from twinflow.runtime.sampling_params import SamplingParams

MODEL = fake_model()
HI = TextPrompt("hi")
USER = ChatMessage("user", "hi")


def build(*prompts: Prompt, model: str = "tiny", **fields: Any) -> SamplingParams:
    options = {name: fields.pop(name) for name in ("priority", "cache_salt") if name in fields}
    return build_request(MODEL, model, prompts, fields, RequestOptions(**options)).params


@pytest.mark.parametrize(
    ("prompts", "fields", "param"),
    [
        ((), {}, "prompt"),
        ((HI,) * 129, {}, "prompt"),
        ((HI, TextPrompt("")), {}, "prompt"),
        ((TokenPrompt(()),), {}, "prompt"),
        ((TokenPrompt((0, 258)),), {}, "prompt"),
        ((TokenPrompt((-1,)),), {}, "prompt"),
        ((ChatPrompt(()),), {}, "messages"),
        ((ChatPrompt((USER,) * 1025),), {}, "messages"),
        ((ChatPrompt((USER, ChatMessage("tool", "x"))),), {}, "messages.1.role"),
        ((ChatPrompt((ChatMessage("user", ""),)),), {}, "messages.0.content"),
        ((HI, HI), {"n": 65}, "n"),
        ((HI,), {"n": 0}, "n"),
        ((HI,), {"temperature": float("nan")}, "temperature"),
        ((HI,), {"stop_token_ids": (258,)}, "stop_token_ids"),
        ((HI,), {"logit_bias": {258: 1.0}}, "logit_bias"),
        ((HI,), {"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ((HI,), {"priority": 2**31}, "priority"),
        ((HI,), {"cache_salt": "x" * 257}, "cache_salt"),
    ],
)
def test_out_of_bounds(prompts: tuple[Prompt, ...], fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        build(*prompts, **fields)
    assert refused.value.param == param


def test_within_bounds() -> None:
    assert build(HI, HI, n=64, max_tokens=None).max_tokens is None
    assert build(ChatPrompt((ChatMessage("system", ""), USER)), model="tiny-alias").n == 1
    assert build(TokenPrompt((0, 257)), priority=-(2**31), cache_salt="x" * 256).seed is None


@pytest.mark.parametrize("model", ["", "other", "TINY", "tiny ", "../tiny"])
def test_other_models_are_not_served(model: str) -> None:
    with pytest.raises(ModelNotFound) as refused:
        build(HI, model=model)
    assert refused.value.param == "model"
    for build_other in (
        lambda: build_tokenize(MODEL, model, TokenizeRequest(HI)),
        lambda: build_detokenize(MODEL, model, (1,)),
    ):
        with pytest.raises(ModelNotFound):
            build_other()


def test_detokenize_checks_its_tokens() -> None:
    assert build_detokenize(MODEL, None, ()).token_ids == ()
    with pytest.raises(InvalidRequest):
        build_detokenize(MODEL, "tiny", (258,))


def test_fit_to_context() -> None:
    whole = SamplingParams(max_tokens=None)
    assert fit_to_context(whole, 250, 256).max_tokens == 6
    assert fit_to_context(whole, 255, 256).max_tokens == 1
    assert fit_to_context(SamplingParams(max_tokens=6), 250, 256).max_tokens == 6
    for params, prompt, field in ((whole, 256, "prompt"), (whole, 10**6, "messages")):
        with pytest.raises(ContextLengthExceeded) as refused:
            fit_to_context(params, prompt, 256, field)
        assert refused.value.param == field
    with pytest.raises(ContextLengthExceeded) as refused:
        fit_to_context(SamplingParams(max_tokens=7), 250, 256)
    assert refused.value.param == "max_tokens"
    with pytest.raises(InvalidRequest) as too_few:
        fit_to_context(SamplingParams(max_tokens=None, min_tokens=7), 250, 256)
    assert too_few.value.param == "min_tokens"
