"""What must pass (the other half of catalogue rows A7 to A34), and that it arrives."""

from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.support.http_gateway import HttpGateway, chat_body, completion_body

from twinflow.cluster.gateway.http.ignored_fields import HEADER, IgnoredFields
from twinflow.cluster.gateway.validation.chat import ChatFields

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
USER = {"role": "user", "content": "hi"}

# Requests that are good, and what the backend's SamplingParams then say.
CHATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "A13-alias": ({"model": "tiny-alias"}, {}),
    "A15-two-systems": (
        {"messages": [{"role": "system", "content": ""}, {"role": "system", "content": "x"}, USER]},
        {},
    ),
    "A15-developer": ({"messages": [{"role": "developer", "content": "x"}, USER]}, {}),
    "A15-assistant-last": ({"messages": [USER, {"role": "assistant", "content": "so"}]}, {}),
    "A15-name": ({"messages": [{**USER, "name": "Ann"}, {**USER, "name": None}]}, {}),
    "A16-text-parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 3}]},
        {},
    ),
    "A19-null": ({"max_tokens": None}, {"max_tokens": 256 - len("user: hi\nassistant:")}),
    "A19-new-name": ({"max_completion_tokens": 3}, {"max_tokens": 3}),
    "A19-both-equal": ({"max_tokens": 3, "max_completion_tokens": 3}, {"max_tokens": 3}),
    "A24-null": ({"n": None}, {"n": 1}),
    "A25-tiny-temperature": ({"temperature": 1e-30}, {"temperature": 1e-30, "greedy": True}),
    "A25-integer": ({"temperature": 1, "top_p": 1}, {"temperature": 1.0, "top_p": 1.0}),
    "A25-keep-all": ({"top_k": -1}, {"top_k": -1}),
    "A25-bounds": ({"top_k": 10**9, "min_p": 1.0}, {"top_k": 10**9, "min_p": 1.0}),
    "A25-penalties": (
        {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.5},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0, "repetition_penalty": 1.5},
    ),
    "A26-one": ({"stop": "END"}, {"stop": ("END",)}),
    "A26-null": ({"stop": None, "stop_token_ids": None}, {"stop": (), "stop_token_ids": ()}),
    "A26-five": ({"stop": list("abcde")}, {"stop": tuple("abcde")}),
    "A26-token-ids": ({"stop_token_ids": [1, 2]}, {"stop_token_ids": (1, 2)}),
    "A27-chat": ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
    "A27-sampled-only": ({"logprobs": True}, {"logprobs": 0}),
    "A27-off": ({"logprobs": False}, {"logprobs": None}),
    "A28-bias": ({"logit_bias": {"5": -100, "6": 0.5}}, {"logit_bias": {5: -100.0, 6: 0.5}}),
    "A29-null": ({"seed": None}, {}),
    "A29-largest": ({"seed": 2**64 - 1}, {"seed": 2**64 - 1}),
    "A30-null": ({"stream": None, "stream_options": None}, {}),
    "A34-unknown": ({"no_such_field": {"deep": [1]}, "request_id": "x"}, {}),
    "A34-vllm": (
        {"ignore_eos": True, "min_tokens": 3, "include_stop_str_in_output": True},
        {"ignore_eos": True, "min_tokens": 3, "include_stop_str_in_output": True},
    ),
    "A35-notes": ({"user": "u" * 512, "metadata": {"k": "v"}}, {}),
}


@pytest.mark.parametrize(("fields", "params"), CHATS.values(), ids=CHATS.keys())
def test_good_chat(gateway: HttpGateway, fields: dict[str, Any], params: dict[str, Any]) -> None:
    body = chat_body() | {"max_tokens": 4} | fields
    if "max_completion_tokens" in fields and "max_tokens" not in fields:
        del body["max_tokens"]
    response = gateway.post(CHAT, body)
    assert response.status_code == 200, response.text
    arrived = gateway.backend.specs[-1].params
    assert {name: getattr(arrived, name) for name in params} == params


NEUTRAL: dict[str, Any] = {
    "tools": [],
    "tool_choice": "none",
    "functions": None,
    "function_call": "auto",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "guided_json": None,
    "structured_outputs": None,
    "chat_template": None,
    "chat_template_kwargs": {},
    "modalities": ["text"],
    "best_of": 1,
    "echo": False,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "skip_special_tokens": True,
    "prompt_logprobs": None,
    "logits_processors": None,
    "add_generation_prompt": True,
    "store": False,
}


def test_a16_text_parts_become_lines(gateway: HttpGateway) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    gateway.post(CHAT, chat_body(parts, max_tokens=1))
    assert bytes(gateway.backend.specs[-1].prompt_token_ids) == b"user: one\ntwo\nassistant:"


def test_a15_names_reach_the_template(gateway: HttpGateway) -> None:
    messages = [{**USER, "name": "Ann"}, {**USER, "name": None}]
    gateway.post(CHAT, {"model": "tiny", "messages": messages, "max_tokens": 1})
    prompt = bytes(gateway.backend.specs[-1].prompt_token_ids)
    assert prompt == b"user Ann: hi\nuser: hi\nassistant:"


def test_values_that_ask_for_nothing_pass(gateway: HttpGateway) -> None:
    response = gateway.post(CHAT, chat_body(max_tokens=1, **NEUTRAL))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat_body(max_tokens=1)),
        (CHAT, chat_body(max_tokens=1, stream=True)),
        (COMPLETION, completion_body(max_tokens=1)),
        ("/tokenize", {"prompt": "hi"}),
        ("/detokenize", {"tokens": [97]}),
    ],
    ids=["A34-chat", "A34-stream", "A34-completion", "A34-tokenize", "A34-detokenize"],
)
def test_ignored_fields_are_named(gateway: HttpGateway, path: str, body: dict[str, Any]) -> None:
    assert HEADER not in gateway.post(path, body).headers
    odd = {"max_token": 5, "Über\r\nx: y": 1, "z" * 65: 1, "a.b": None}
    response = gateway.post(path, body | odd)
    assert response.status_code == 200
    assert response.headers[HEADER] == "a.b,max_token"
    many = {f"field_{number:03}": 1 for number in range(1000)}
    names = gateway.post(path, body | many).headers[HEADER].split(",")
    assert names == [f"field_{number:03}" for number in range(16)]


def test_a34_ignored_fields_are_logged_now_and_then() -> None:
    now = 0.0
    ignored = IgnoredFields(lambda: now)
    with capture_logs() as logs:
        for now in (0.0, 1.0, 59.0, 61.0):
            body = {"model": "tiny", "temprature": now}
            assert ignored.headers(body, ChatFields, {}) == {HEADER: "temprature"}
    assert [log["fields"] for log in logs] == [["temprature"]] * 2


PROMPTS: dict[str, tuple[Any, list[bytes]]] = {
    "A17-string": ("ab", [b"ab"]),
    "A17-strings": (["ab", "c"], [b"ab", b"c"]),
    "A17-token-ids": ([97, 98], [b"ab"]),
    "A17-lists-of-token-ids": ([[97, 98], [99]], [b"ab", b"c"]),
    "A18-bounds": ([0, 255], [b"\x00\xff"]),
    "A24-most-prompts": (["a"] * 128, [b"a"] * 128),
}


@pytest.mark.parametrize(("prompt", "tokens"), PROMPTS.values(), ids=PROMPTS.keys())
def test_good_prompt(gateway: HttpGateway, prompt: Any, tokens: list[bytes]) -> None:
    response = gateway.post(COMPLETION, completion_body(prompt, max_tokens=1))
    assert response.status_code == 200, response.text
    arrived = [bytes(spec.prompt_token_ids) for spec in gateway.backend.specs[-len(tokens) :]]
    assert arrived == tokens
    assert [choice["index"] for choice in response.json()["choices"]] == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens"),
    [
        pytest.param(255, 1, id="A21-whole-context"),
        pytest.param(16, 16, id="A21-one-block"),
        pytest.param(17, 15, id="A21-one-over-a-block"),
        pytest.param(1, 255, id="A21-all-output"),
    ],
)
def test_prompt_at_a_limit(gateway: HttpGateway, prompt_tokens: int, max_tokens: int) -> None:
    body = completion_body("x" * prompt_tokens, max_tokens=max_tokens, ignore_eos=True)
    usage = gateway.post(COMPLETION, body).json()["usage"]
    assert usage["prompt_tokens"] == prompt_tokens
    assert usage["completion_tokens"] == max_tokens


def test_completions_default_to_16_tokens_and_chats_to_the_context(gateway: HttpGateway) -> None:
    body = {"ignore_eos": True}
    completion = gateway.post(COMPLETION, completion_body(**body)).json()
    chat = gateway.post(CHAT, chat_body(**body)).json()
    assert completion["usage"]["completion_tokens"] == 16
    assert chat["usage"]["total_tokens"] == 256
    assert chat["choices"][0]["finish_reason"] == "length"


def test_a24_completions_have_seeds_of_their_own(gateway: HttpGateway) -> None:
    body = completion_body(["a", "b"], n=3, seed=7, max_tokens=8)
    choices = gateway.post(COMPLETION, body).json()["choices"]
    specs = gateway.backend.specs[-6:]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3, 4, 5]
    assert specs[0].params.seed == 7
    assert len({spec.params.seed for spec in specs[:3]}) == 3
    assert [spec.params.seed for spec in specs[3:]] == [spec.params.seed for spec in specs[:3]]
    alone = gateway.post(COMPLETION, completion_body("b", seed=7, max_tokens=8)).json()
    assert alone["choices"][0]["text"] == choices[3]["text"]


def test_a47_identical_requests_without_a_seed_are_independent(gateway: HttpGateway) -> None:
    before = len(gateway.backend.specs)
    for _ in range(3):
        gateway.post(COMPLETION, completion_body(["same", "same"], max_tokens=1))
    specs = gateway.backend.specs[before:]
    assert len({spec.params.seed for spec in specs}) == 6
    assert len({spec.request_id for spec in specs}) == 6


def test_priority_and_salt_arrive(gateway: HttpGateway) -> None:
    gateway.post(CHAT, chat_body(max_tokens=1, priority=-3, cache_salt="tenant"))
    spec = gateway.backend.specs[-1]
    assert (spec.priority, spec.cache_salt, spec.api_key_id) == (-3, "tenant", "")
    assert 0 < spec.deadline_s <= 600
