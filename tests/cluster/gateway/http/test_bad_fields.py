"""Fields that cannot be served (catalogue rows A13 to A34): refused before anything is queued."""

import socket
from dataclasses import dataclass
from typing import Any

import pytest
from tests.support.http_gateway import (
    HttpGateway,
    assert_openai_error,
    chat_body,
    completion_body,
    http_gateway,
)

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
USER = {"role": "user", "content": "hi"}
MISSING = object()


@dataclass(frozen=True)
class Bad:
    """One way to get a field wrong: its id begins with the row of the catalogue."""

    id: str
    fields: dict[str, Any]
    param: str | None = None
    status: int = 400
    code: str = "invalid_request"
    path: str = CHAT

    @property
    def body(self) -> dict[str, object]:
        good = chat_body() if self.path == CHAT else completion_body()
        return {k: v for k, v in (good | self.fields).items() if v is not MISSING}


def bad(row: str, field: str, *values: Any, path: str = CHAT, **context: Any) -> list[Bad]:
    """The same field with several wrong values."""
    return [
        Bad(f"{row}-{field}-{number}", {**context, field: value}, field, path=path)
        for number, value in enumerate(values)
    ]


def message(row: str, name: str, param: str | None, *messages: object) -> Bad:
    return Bad(f"{row}-{name}", {"messages": list(messages)}, param)


def parts(name: str, part: object) -> Bad:
    return message("A16", name, "messages.0.content", {"role": "user", "content": [part]})


NOT_FOUND = {"status": 404, "code": "model_not_found"}
TOO_LONG = "context_length_exceeded"
LONG = "x" * 255  # one byte is one token; the context has 256

CASES = [
    Bad("A13-missing", {"model": MISSING}, "model"),
    *bad("A13", "model", None, 5, ["tiny"]),
    Bad("A13-unknown", {"model": "gpt-4"}, "model", 404, "model_not_found"),
    Bad("A13-long", {"model": "x" * 10_000}, "model", 404, "model_not_found"),
    Bad("A13-path", {"model": "../../etc/passwd"}, "model", 404, "model_not_found"),
    Bad("A13-empty", {"model": ""}, "model", 404, "model_not_found"),
    Bad("A14-missing", {"messages": MISSING}, "messages"),
    *bad("A14", "messages", [], None, "hi", {}, [USER] * 100_001),
    Bad("A14-number", {"messages": [1]}, "messages.0"),
    message("A15", "unknown-role", "messages.0.role", {"role": "robot", "content": "hi"}),
    message("A15", "role-missing", "messages.0.role", {"content": "hi"}),
    message("A15", "role-number", "messages.1.role", USER, {"role": 1, "content": "hi"}),
    message("A15", "role-tool", "messages.1.role", USER, {"role": "tool", "content": "4"}),
    message(
        "A15",
        "tool-call-id",
        "messages.1.tool_call_id",
        USER,
        {"role": "tool", "content": "4", "tool_call_id": "x"},
    ),
    message(
        "A15",
        "tool-calls",
        "messages.1.tool_calls",
        USER,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]},
    ),
    message("A15", "name-empty", "messages.0.name", {**USER, "name": ""}),
    message("A15", "name-long", "messages.0.name", {**USER, "name": "x" * 65}),
    message("A15", "name-number", "messages.0.name", {**USER, "name": 5}),
    message("A16", "null", "messages.0.content", {"role": "user", "content": None}),
    message("A16", "empty", "messages.0.content", {"role": "user", "content": ""}),
    message("A16", "number", "messages.0.content", {"role": "user", "content": 5}),
    message("A16", "no-parts", "messages.0.content", {"role": "user", "content": []}),
    parts("unknown-part", {"type": "hologram"}),
    parts("no-type", {"text": "hi"}),
    parts("text-number", {"type": "text", "text": 5}),
    parts("string-part", "hi"),
    parts("file", {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
    parts("bomb", {"type": "image_url", "image_url": {"url": "data:," + "A" * 1_000_000}}),
    parts("audio", {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
    *bad("A17", "prompt", "", [], [""], [[]], ["a", ""], path=COMPLETION),
    *bad("A17", "prompt", ["a"] * 100_000, ["a", 1], [[1], ["a"]], [[[1]]], path=COMPLETION),
    *bad("A17", "prompt", None, 5, {"text": "hi"}, [None], [1, [2]], path=COMPLETION),
    Bad("A17-missing", {"prompt": MISSING}, "prompt", path=COMPLETION),
    Bad("A17-many-tokens", {"prompt": [1] * 100_000}, None, code=TOO_LONG, path=COMPLETION),
    *bad("A18", "prompt", [-1], [258], [2**63], [1.5], [True], [2**200], path=COMPLETION),
    *bad("A18", "prompt", [[1], [258]], path=COMPLETION),
    *bad("A19", "max_tokens", 0, -1, 1.5, True, "2", 2**63, 1.0),
    *bad("A19", "max_completion_tokens", 0, True),
    Bad("A19-both", {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    Bad("A20-prompt", {"prompt": "x" * 300}, "prompt", code=TOO_LONG, path=COMPLETION),
    Bad("A20-sum", {"max_tokens": 255}, "max_tokens", code=TOO_LONG, path=COMPLETION),
    Bad("A20-chat", {"messages": [{**USER, "content": LONG}]}, "messages", code=TOO_LONG),
    Bad("A20-huge", {"max_tokens": 2**31 - 1}, "max_tokens", code=TOO_LONG),
    Bad("A21-full", {"prompt": LONG + "x", "max_tokens": 1}, "prompt", 400, TOO_LONG, COMPLETION),
    Bad("A21-over", {"prompt": LONG, "max_tokens": 2}, "max_tokens", 400, TOO_LONG, COMPLETION),
    Bad("A23-over-max", {"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
    Bad("A23-default-max", {"min_tokens": 17}, "min_tokens", path=COMPLETION),
    Bad("A23-null-max", {"min_tokens": 254, "max_tokens": None}, "min_tokens"),
    *bad("A23", "min_tokens", -1, True, "1"),
    *bad("A24", "n", 0, -1, 129, 10**9, 1.5, True),
    Bad("A24-product", {"n": 65, "prompt": ["a", "b"]}, "n", path=COMPLETION),
    Bad("A24-best-of-n", {"n": 2, "best_of": 1}, "best_of", path=COMPLETION),
    *bad("A24", "best_of", 2, True, path=COMPLETION),
    *bad("A25", "temperature", -1, 2.01, "1", True, []),
    *bad("A25", "top_p", 0, 1.1, -0.5, "1"),
    *bad("A25", "top_k", -2, 2**31, 1.0, True),
    *bad("A25", "min_p", 2, -0.1),
    *bad("A25", "presence_penalty", 3, -3, True),
    *bad("A25", "frequency_penalty", 2.5, "0"),
    *bad("A25", "repetition_penalty", 0, -1, 2.5),
    *bad("A26", "stop", "", [""], ["a"] * 17, "x" * 100_000, ["a", ""]),
    *bad("A26", "stop_token_ids", [258], [-1], 5, [1] * 129),
    Bad("A26-stop-token-bool", {"stop_token_ids": [True]}, "stop_token_ids.0"),
    Bad("A26-stop-token-string", {"stop_token_ids": [1, "1"]}, "stop_token_ids.1"),
    Bad("A26-number", {"stop": 5}, "stop"),
    Bad("A26-numbers", {"stop": [5]}, "stop.0"),
    *bad("A27", "logprobs", 10**6, -2, True, 21, "1", path=COMPLETION),
    *bad("A27", "top_logprobs", 21, -1, True, logprobs=True),
    Bad("A27-alone", {"top_logprobs": 2}, "top_logprobs"),
    Bad("A27-false", {"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
    Bad("A27-number", {"logprobs": 1}, "logprobs"),
    *bad("A28", "logit_bias", {"abc": 1}, {"258": 1}, {"-1": 1}, {"1": 1e9}, {"1": -101}),
    *bad("A28", "logit_bias", {str(n): 1 for n in range(100_000)}, [1], "x", {"1.0": 1}),
    *bad("A28", "logit_bias", {"1" * 5000: 1}, {"²": 1}),
    Bad("A28-value", {"logit_bias": {"1": "x"}}, None),
    *bad("A29", "seed", -1, 2**64, 1.5, True, "1"),
    *bad("A30", "stream", "yes", 1),
    Bad("A30-no-stream", {"stream_options": {"include_usage": True}}, "stream_options"),
    *bad("A30", "stream_options", 5, [], stream=True),
    Bad(
        "A30-usage",
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
    ),
    *bad(
        "A31",
        "response_format",
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
        {"type": "json_schema", "json_schema": {"description": "x" * 1_000_000}},
        {"type": 5},
    ),
    *bad("A31", "guided_regex", "(a+)+b", "["),
    *bad("A31", "guided_json", {"type": "object"}),
    *bad("A31", "guided_choice", ["a"]),
    *bad("A31", "guided_grammar", "root ::= x"),
    *bad("A31", "structured_outputs", {"regex": "a"}),
    *bad("A32", "tools", [{"type": "function", "function": {"name": "f" * 10_000}}]),
    *bad("A32", "tools", [{"type": "function"}] * 10_000),
    *bad("A32", "tool_choice", "required", {"type": "function", "function": {"name": "f"}}),
    *bad("A32", "functions", [{"name": "f"}]),
    *bad("A32", "function_call", {"name": "f"}),
    *bad("A33", "chat_template", "{{ ''.__class__ }}", ""),
    *bad("A33", "chat_template_kwargs", {"enable_thinking": False}),
    *bad("A34", "echo", True, path=COMPLETION),
    *bad("A34", "suffix", "x", path=COMPLETION),
    *bad("A34", "prompt_logprobs", 1, 0, path=COMPLETION),
    *bad("A34", "use_beam_search", True),
    *bad("A34", "logits_processors", ["x"]),
    *bad("A34", "skip_special_tokens", False),
    *bad("A34", "modalities", ["audio"], ["text", "audio"]),
    *bad("A34", "kv_transfer_params", {"remote_host": "10.0.0.1"}),
    *bad("A34", "priority", 2**31, True, "1"),
    *bad("A34", "cache_salt", "x" * 257, 5),
    *bad("A34", "ignore_eos", 1, "true"),
    *bad("A34", "return_token_ids", 1),
    Bad("A35-user", {"user": "x" * 1_000_000}, "user"),
    Bad("A35-metadata-size", {"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    Bad("A35-metadata-value", {"metadata": {"a": "x" * 1_000_000}}, None),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_field_is_refused(gateway: HttpGateway, case: Bad) -> None:
    admitted = len(gateway.backend.specs)
    response = gateway.post(case.path, case.body)
    assert_openai_error(response, case.status, case.code, case.param)
    assert len(gateway.backend.specs) == admitted


def test_unsupported_features_say_so(gateway: HttpGateway) -> None:
    for field, value in (("tools", [{}]), ("response_format", {"type": "json_object"})):
        error = gateway.post(CHAT, chat_body(**{field: value})).json()["error"]
        assert "not supported" in error["message"]
        assert field in error["message"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a16_no_url_is_fetched(gateway: HttpGateway, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/x.png"
        part = {"type": "image_url", "image_url": {"url": url}}
        assert_openai_error(gateway.post(CHAT, chat_body([part])), 400)
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a22_prompt_larger_than_the_pool() -> None:
    with http_gateway() as gateway:
        gateway.backend.max_prompt_tokens = 20
        response = gateway.post(COMPLETION, completion_body("x" * 21))
        assert_openai_error(response, 400, param="prompt")
        assert gateway.post(COMPLETION, completion_body("x" * 20)).status_code == 200


def test_nothing_of_the_input_is_echoed(gateway: HttpGateway) -> None:
    marker = "<script>marker"
    for body in (
        chat_body(model=marker),
        chat_body(logit_bias={marker: 1}),
        chat_body(metadata={marker: 1}),
        chat_body(stop=[marker, 5]),
        {"model": "tiny", "messages": [{"role": marker, "content": "x"}]},
    ):
        assert marker not in gateway.post(CHAT, body).text
    assert marker not in gateway.get(f"/{marker}").text
