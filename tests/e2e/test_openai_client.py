"""OpenAI's own client, validating strictly, against SmolLM2 on a prefill and a decode worker."""

from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.support.deployments import Deployment

MODEL = "smollm2-135m"
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]
STORY: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Tell me a story about a fox."}
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def client(real_deployment: Deployment) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{real_deployment.http_url}/v1",
        api_key="none",
        timeout=120,
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


def test_complete(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_completion_tokens=32
    )
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "The capital of France is Paris."
    assert choice.finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            temperature=0,
            max_completion_tokens=32,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *deltas, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 8
    assert {chunk.id for chunk in chunks} == {last.id}
    assert all(chunk.usage is None for chunk in deltas)
    first = deltas[0].choices[0].delta
    assert first.role == "assistant"
    assert first.content
    text = "".join(chunk.choices[0].delta.content or "" for chunk in deltas)
    assert text == "The capital of France is Paris."
    assert [chunk.choices[0].finish_reason for chunk in deltas if chunk.choices[0].finish_reason]
    assert deltas[-1].choices[0].finish_reason == "stop"


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    entries = choice.logprobs.content
    for entry in entries:
        assert [entry.token, entry.logprob] == [
            entry.top_logprobs[0].token,
            entry.top_logprobs[0].logprob,
        ]
        assert len(entry.top_logprobs) == 3
        assert 0 >= entry.logprob >= entry.top_logprobs[1].logprob
    said = b"".join(bytes(entry.bytes or []) for entry in entries[:-1])
    assert said.decode() == choice.message.content
    assert entries[-1].token == "<|im_end|>"


def test_logprobs_of_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=4, logprobs=2
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset == [
        sum(map(len, choice.logprobs.tokens[:index])) for index in range(4)
    ]


def test_several_choices_and_seeds(client: openai.OpenAI) -> None:
    def ask(n: int, seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=STORY, n=n, seed=seed, temperature=1, max_completion_tokens=12
        )
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.message.content for choice in answer.choices]

    first, second = ask(2, seed=1)
    assert first != second
    assert ask(2, seed=1) == [first, second]
    assert ask(1, seed=1) == [first]
    assert ask(1, seed=2) != [first]


def test_several_choices_in_one_stream(client: openai.OpenAI) -> None:
    texts, ends = {0: "", 1: ""}, []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=STORY, n=2, seed=1, max_completion_tokens=12, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert sorted(ends) == [0, 1]
    assert texts[0] and texts[1] and texts[0] != texts[1]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client: openai.OpenAI, stream: bool) -> None:
    """The stop string is in the middle of the answer, and of a token."""
    if stream:
        chunks = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, temperature=0, stop=["ance is"], stream=True
        )
        choices = [choice for chunk in chunks for choice in chunk.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        reason: str | None = choices[-1].finish_reason
    else:
        answer = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, temperature=0, stop=["ance is"]
        )
        text, reason = answer.choices[0].message.content or "", answer.choices[0].finish_reason
    assert text == "The capital of Fr"
    assert reason == "stop"


def test_errors(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        create(model=MODEL, messages=MESSAGES, temperature=-1)
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="another", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="tools"):
        create(
            model=MODEL,
            messages=MESSAGES,
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )
    with pytest.raises(openai.BadRequestError) as long:
        create(model=MODEL, messages=[{"role": "user", "content": "word " * 3000}])
    assert long.value.code == "context_length_exceeded"


def test_models(client: openai.OpenAI, real_deployment: Deployment) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] == 2048
    assert model.model_extra["root"]
    assert client.models.retrieve(MODEL).id == MODEL
