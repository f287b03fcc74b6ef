"""OpenAI's own Python client, validating strictly."""

from collections.abc import Iterator

import openai
import pytest
from tests.support.fake_backend import Behaviour
from tests.support.http_gateway import PATIENCE_S, HttpGateway, http_gateway

from twinflow.protos.errors import Overloaded, Unavailable

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


def client_of(gateway: HttpGateway, key: str = "sk-test", retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=key,
        max_retries=retries,
        timeout=PATIENCE_S,
        _strict_response_validation=True,
    )


@pytest.fixture(scope="module")
def client(gateway: HttpGateway) -> Iterator[openai.OpenAI]:
    gateway.backend.behaviour = Behaviour(reply=lambda spec: "Päris 🗼.".encode())
    with client_of(gateway) as found:
        yield found


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=2, logprobs=True, top_logprobs=3
    )
    assert answer.object == "chat.completion"
    assert [choice.message.content for choice in answer.choices] == ["Päris 🗼."] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 * (len("Päris 🗼.".encode()) + 1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert logprobs.content[0].token == "P"
    assert len(logprobs.content[0].top_logprobs) == 3
    assert answer._request_id is not None


def test_chat_stream(client: openai.OpenAI) -> None:
    text = ""
    usage = None
    with client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for number, chunk in enumerate(stream):
            if number == 0:
                assert chunk.choices[0].delta.role == "assistant"
                assert chunk.choices[0].delta.content == "P"
            for choice in chunk.choices:
                text += choice.delta.content or ""
            usage = chunk.usage
    assert text == "Päris 🗼."
    assert usage is not None and usage.completion_tokens == len(text.encode()) + 1


def test_chat_stream_with_several_completions_and_logprobs(client: openai.OpenAI) -> None:
    texts, tokens, ends = ["", ""], ["", ""], []
    with client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=2, stream=True, logprobs=True, top_logprobs=2
    ) as stream:
        for chunk in stream:
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            for entry in (choice.logprobs.content or []) if choice.logprobs else []:
                assert len(entry.top_logprobs) == 2
                tokens[choice.index] += bytes(entry.bytes or []).decode("latin-1")
            ends += [choice.index] if choice.finish_reason == "stop" else []
    assert texts == ["Päris 🗼."] * 2
    assert [part.encode("latin-1").decode() for part in tokens] == texts
    assert sorted(ends) == [0, 1]


def test_stop_and_length(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    for stop in ("is", ["x", "is"]):
        (choice,) = create(model="tiny", messages=MESSAGES, stop=stop).choices
        assert (choice.message.content, choice.finish_reason) == ("Pär", "stop")
    (choice,) = create(model="tiny", messages=MESSAGES, max_completion_tokens=4).choices
    assert (choice.message.content, choice.finish_reason) == ("Pär", "length")


def test_completion_stream(client: openai.OpenAI) -> None:
    """Not strictly: the client's type lacks the null that OpenAI sends while a choice goes on."""
    text, usage = "", None
    with (
        openai.OpenAI(base_url=client.base_url, api_key="none", timeout=PATIENCE_S) as tolerant,
        tolerant.completions.create(
            model="tiny", prompt="a", stream=True, stream_options={"include_usage": True}
        ) as stream,
    ):
        for chunk in stream:
            text += "".join(choice.text for choice in chunk.choices)
            usage = chunk.usage
    assert text == "Päris 🗼."
    assert usage is not None and usage.prompt_tokens == 1


def test_ignored_fields_show(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=MESSAGES, extra_body={"max_token": 3}
    )
    assert raw.headers["x-twinflow-ignored-fields"] == "max_token"
    assert raw.parse().choices[0].message.content == "Päris 🗼."


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["a", "b"], logprobs=2, extra_body={"return_token_ids": True}
    )
    assert [choice.text for choice in answer.choices] == ["Päris 🗼."] * 2
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None and logprobs.tokens is not None
    assert logprobs.tokens[0] == "P"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny-alias"]
    assert client.models.retrieve("tiny").owned_by == "twinflow"


def test_client_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
    assert bad.value.param == "temperature"
    assert bad.value.code == "invalid_request"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert missing.value.code == "model_not_found"


def test_authentication() -> None:
    with http_gateway(keys=["sk-right"]) as gateway:
        with client_of(gateway, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with client_of(gateway, "sk-right") as friend:
            assert friend.models.retrieve("tiny").id == "tiny"


def test_broken_stream_raises() -> None:
    with http_gateway(Behaviour(fail_after=2)) as gateway, client_of(gateway) as client:
        stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="failed to process"):
            for _ in stream:
                pass


def test_failure_after_tokens_is_not_retried() -> None:
    with http_gateway(Behaviour(fail_after=2)) as gateway, client_of(gateway, retries=2) as client:
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert len(gateway.backend.specs) == 1


def test_errors_have_their_classes() -> None:
    full = Overloaded("The queue is full.", retry_after_s=2.0)
    with http_gateway() as gateway, client_of(gateway) as client:
        create = client.chat.completions.create
        for refusal, expected in (
            (full, openai.RateLimitError),
            (Unavailable("Starting."), openai.InternalServerError),
        ):
            for stream in (False, True):
                gateway.backend.refuse_next(refusal, times=1)
                with pytest.raises(expected) as raised:
                    create(model="tiny", messages=MESSAGES, stream=stream)
                assert raised.value.code == refusal.code
                assert raised.value.response.headers["retry-after"]
                assert raised.value.request_id is not None
        with pytest.raises(openai.BadRequestError) as unsupported:
            create(model="tiny", messages=MESSAGES, response_format={"type": "json_object"})
        assert unsupported.value.param == "response_format"
        with pytest.raises(openai.APIStatusError) as large:
            create(model="tiny", messages=[{"role": "user", "content": "x" * (5 << 20)}])
        assert (large.value.status_code, large.value.code) == (413, "payload_too_large")


def test_refusal_is_retried_until_there_is_room() -> None:
    with http_gateway() as gateway, client_of(gateway, retries=2) as client:
        gateway.backend.refuse_next(Unavailable("Starting.", retry_after_s=0.1), times=1)
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert answer.choices[0].finish_reason == "stop"


def test_leaving_a_stream_aborts_it() -> None:
    with http_gateway(Behaviour(delay_s=0.02)) as gateway, client_of(gateway) as client:
        with client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, extra_body={"ignore_eos": True}
        ) as stream:
            next(iter(stream))
        gateway.wait_until(lambda: gateway.backend.outcomes["aborted"] == 1, "the abort")
