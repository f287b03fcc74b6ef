"""What the methods of twinflow.v1.Inference answer."""

import pytest
from tests.support.fake_backend import Behaviour, FakeBackend, hashed_reply
from tests.support.grpc_doors import (
    call,
    generate_request,
    running_door,
    stream,
    stream_request,
)

import twinflow
from twinflow.protos.twinflow.v1 import inference_pb2 as pb


def says(text: str, cached_tokens: int = 0) -> FakeBackend:
    return FakeBackend(Behaviour(reply=lambda _spec: text.encode(), cached_tokens=cached_tokens))


async def generate(backend: FakeBackend, request: pb.GenerateRequest) -> pb.GenerateResponse:
    async with running_door(backend) as door, door.channel() as channel:
        return pb.GenerateResponse.FromString(await call(channel, "Generate", request))


async def test_generate_returns_the_whole_answer() -> None:
    response = await generate(says("Paris.", cached_tokens=3), generate_request("Capital?"))
    assert response.request_id
    assert response.model == "tiny"
    [completion] = response.completions
    assert completion.text == "Paris."
    assert completion.finish_reason == pb.FINISH_REASON_STOP
    assert completion.WhichOneof("stop_reason") is None
    assert response.usage == pb.Usage(prompt_tokens=8, completion_tokens=7, cached_tokens=3)


async def test_generate_adds_only_what_was_asked_for() -> None:
    response = await generate(says("Paris."), generate_request())
    [completion] = response.completions
    assert not response.HasField("timeline")
    assert not completion.token_ids
    assert not completion.logprobs
    assert not response.prompt_token_ids


async def test_generate_with_token_ids_logprobs_and_timeline() -> None:
    request = generate_request("ab", max_tokens=2)
    request.input.response.CopyFrom(
        pb.ResponseOptions(logprobs=2, return_token_ids=True, return_timeline=True)
    )
    response = await generate(says("xyz"), request)
    [completion] = response.completions
    assert bytes(response.prompt_token_ids) == b"ab"
    assert bytes(completion.token_ids) == b"xy"
    assert completion.finish_reason == pb.FINISH_REASON_LENGTH
    first = completion.logprobs[0]
    assert (first.sampled.token_id, first.sampled.token) == (ord("x"), "x")
    assert [entry.token for entry in first.top] == ["x", "y"]
    phases = response.timeline.phases
    assert {"tokenize", "prefill", "decode"} <= {phase.name for phase in phases}
    total = response.timeline.total_seconds
    assert sum(phase.seconds for phase in phases) == pytest.approx(total, rel=0.01)


async def test_a_token_within_a_character_is_named_all_the_same() -> None:
    request = generate_request()
    request.input.response.logprobs = 0
    response = await generate(says("é"), request)
    names = [entry.sampled.token for entry in response.completions[0].logprobs]
    assert names == ["\\xc3", "\\xa9", ""]
    assert response.completions[0].text == "é"


async def test_stop_string_and_stop_token_are_reported() -> None:
    request = generate_request()
    request.input.stopping.stop.append("c")
    response = await generate(says("abcd"), request)
    assert response.completions[0].text == "ab"
    assert response.completions[0].stop_string == "c"

    request = generate_request()
    request.input.stopping.stop_token_ids.append(ord("b"))
    response = await generate(says("abcd"), request)
    assert response.completions[0].text == "a"
    assert response.completions[0].stop_token_id == ord("b")


async def test_completions_of_one_prompt_differ_by_seed_and_repeat_by_seed() -> None:
    backend = FakeBackend(Behaviour(reply=hashed_reply))
    request = generate_request()
    request.input.sampling.CopyFrom(pb.SamplingParams(n=3, seed=7))
    first = await generate(backend, request)
    again = await generate(backend, request)
    texts = [completion.text for completion in first.completions]
    assert [completion.index for completion in first.completions] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [completion.text for completion in again.completions]


async def test_stream_joins_to_the_unary_answer_and_ends_with_complete() -> None:
    backend = FakeBackend(Behaviour(reply=hashed_reply))
    request = stream_request()
    request.input.sampling.CopyFrom(pb.SamplingParams(n=2, seed=7))
    request.input.response.return_token_ids = True
    async with running_door(backend) as door, door.channel() as channel:
        responses = [response async for response in stream(channel, request)]
        unary = pb.GenerateRequest(input=request.input)
        whole = pb.GenerateResponse.FromString(await call(channel, "Generate", unary))
    *chunks, last = responses
    assert {response.request_id for response in responses} == {last.request_id}
    assert all(response.WhichOneof("response") == "chunk" for response in chunks)
    for completion, end in zip(whole.completions, last.complete.ends, strict=True):
        own = [r.chunk for r in chunks if r.chunk.index == completion.index]
        assert "".join(chunk.text for chunk in own) == completion.text
        assert [t for chunk in own for t in chunk.token_ids] == list(completion.token_ids)
        assert (end.index, end.finish_reason) == (completion.index, completion.finish_reason)
    assert last.complete.usage == whole.usage
    assert last.complete.prompt_token_ids == whole.prompt_token_ids
    assert len(chunks) > 2


async def test_absent_fields_take_documented_defaults() -> None:
    backend = FakeBackend()
    await generate(backend, generate_request("Hello"))
    [spec] = backend.specs
    assert spec.params.max_tokens == backend.model.max_model_len - len("Hello")
    assert (spec.params.temperature, spec.params.top_p, spec.priority) == (1.0, 1.0, 0)
    assert spec.deadline_s == pytest.approx(20.0, abs=1.0)


async def test_every_field_reaches_the_backend() -> None:
    backend = FakeBackend()
    request = generate_request("Hello")
    request.input.priority = -3
    request.input.cache_salt = "tenant"
    request.input.sampling.CopyFrom(
        pb.SamplingParams(
            temperature=0.5,
            top_k=4,
            top_p=0.75,
            min_p=0.25,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            repetition_penalty=1.5,
            logit_bias={7: 2.5},
            seed=11,
        )
    )
    request.input.stopping.CopyFrom(
        pb.StopCriteria(max_tokens=9, min_tokens=2, stop=["#"], stop_token_ids=[3], ignore_eos=True)
    )
    await generate(backend, request)
    [spec] = backend.specs
    assert (spec.priority, spec.cache_salt, spec.prompt_token_ids) == (-3, "tenant", (*b"Hello",))
    assert spec.params == twinflow.SamplingParams(
        temperature=0.5,
        top_k=4,
        top_p=0.75,
        min_p=0.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={7: 2.5},
        seed=11,
        max_tokens=9,
        min_tokens=2,
        stop=("#",),
        stop_token_ids=(3,),
        ignore_eos=True,
    )


async def test_chat_and_token_prompts() -> None:
    backend = FakeBackend()
    speakers = [pb.ChatMessage(role="user", content="Hi", name=name) for name in ("Ann", None)]
    chat = pb.Chat(messages=speakers)
    async with running_door(backend) as door, door.channel() as channel:
        for prompt in (
            pb.GenerationInput(model="tiny", chat=chat),
            pb.GenerationInput(model="tiny-alias", token_ids=pb.TokenIds(ids=[5, 6])),
        ):
            await call(channel, "Generate", pb.GenerateRequest(input=prompt))
    assert bytes(backend.specs[0].prompt_token_ids) == b"user Ann: Hi\nuser: Hi\nassistant:"
    assert backend.specs[1].prompt_token_ids == (5, 6)


async def test_tokenize_detokenize_and_model_info() -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hi")])
    async with running_door() as door, door.channel() as channel:
        raw = await call(channel, "Tokenize", pb.TokenizeRequest(model="tiny", text="Hé"))
        text = pb.TokenizeResponse.FromString(raw)
        raw = await call(channel, "Tokenize", pb.TokenizeRequest(chat=chat))
        conversation = pb.TokenizeResponse.FromString(raw)
        raw = await call(channel, "Detokenize", pb.DetokenizeRequest(token_ids=text.token_ids))
        back = pb.DetokenizeResponse.FromString(raw)
        raw = await call(channel, "GetModelInfo", pb.GetModelInfoRequest())
    assert bytes(text.token_ids) == "Hé".encode()
    assert text.max_model_len == 256
    assert bytes(conversation.token_ids) == b"user: Hi\nassistant:"
    assert back.text == "Hé"
    assert pb.GetModelInfoResponse.FromString(raw) == pb.GetModelInfoResponse(
        model="tiny",
        root="/models/tiny",
        max_model_len=256,
        vocab_size=258,
        dtype="float32",
        block_size=16,
        version=twinflow.__version__,
    )
