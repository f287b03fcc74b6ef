"""What clients write and read, without a server."""

from typing import Any, get_type_hints

import pytest

from twinflow.cluster.client.request import (
    CallOptions,
    SamplingFields,
    Source,
    detokenize_request,
    generation,
    tokenize_request,
)
from twinflow.cluster.client.response import ChunkReader, Usage, request_output
from twinflow.protos.errors import InvalidRequest, ServerError
from twinflow.protos.twinflow.v1 import inference_pb2 as pb
from twinflow.runtime.outputs import FinishReason, PhaseTime, TokenLogprobs
from twinflow.runtime.sampling_params import SamplingParams


def test_keyword_arguments_are_the_fields_of_sampling_params() -> None:
    assert set(get_type_hints(SamplingFields)) == set(SamplingParams.__dataclass_fields__)


def test_every_sampling_parameter_has_its_place_in_the_message() -> None:
    carried = {
        *pb.SamplingParams.DESCRIPTOR.fields_by_name,
        *pb.StopCriteria.DESCRIPTOR.fields_by_name,
        *pb.ResponseOptions.DESCRIPTOR.fields_by_name,
    }
    assert set(SamplingParams.__dataclass_fields__) <= carried


def test_the_message_says_everything_explicitly() -> None:
    params = SamplingParams(temperature=0.5, stop=("a", "b"), logit_bias={3: 1.5}, logprobs=2)
    options = CallOptions(priority=-2, cache_salt="salt", timeline=True)
    message = generation(Source("Hi"), params, options, {}).input("tiny")
    assert (message.model, message.text, message.priority) == ("tiny", "Hi", -2)
    assert message.cache_salt == "salt"
    assert message.sampling.temperature == 0.5
    assert message.sampling.top_p == 1.0 and message.sampling.HasField("top_p")
    assert not message.sampling.HasField("seed")
    assert dict(message.sampling.logit_bias) == {3: 1.5}
    assert list(message.stopping.stop) == ["a", "b"]
    assert message.stopping.max_tokens == 16
    assert message.response.logprobs == 2
    assert message.response.return_token_ids and message.response.return_timeline


def test_no_end_is_an_absent_max_tokens() -> None:
    message = generation(Source("Hi"), None, None, {"max_tokens": None}).input("tiny")
    assert not message.stopping.HasField("max_tokens")


def test_single_fields_change_the_parameters_given() -> None:
    base = SamplingParams(temperature=0.5, max_tokens=7)
    wanted = generation(Source("Hi"), base, None, {"max_tokens": 9, "stop": "\n"})
    assert wanted.params == SamplingParams(temperature=0.5, max_tokens=9, stop=("\n",))
    listed = generation(Source("Hi"), base, None, {"stop": ["a", "b"], "stop_token_ids": [1]})
    assert (listed.params.stop, listed.params.stop_token_ids) == (("a", "b"), (1,))


def test_sources() -> None:
    tokens = generation(Source(token_ids=range(3)), None, None, {}).input("m")
    assert list(tokens.token_ids.ids) == [0, 1, 2]
    chat = generation(Source(messages=[{"role": "user", "content": "Hi"}]), None, None, {})
    assert chat.input("m").chat.messages[0] == pb.ChatMessage(role="user", content="Hi")


@pytest.mark.parametrize(
    "given", [{}, {"prompt": "a", "token_ids": [1]}, {"prompt": "a", "messages": []}]
)
def test_exactly_one_source_is_needed(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="exactly one"):
        Source(**given)


@pytest.mark.parametrize(
    "source",
    [
        Source("\ud800"),
        Source(token_ids=[-1]),
        Source(token_ids=[2**32]),
        Source(token_ids=[1.5]),  # type: ignore[list-item]
        Source(messages=[{"role": "user", "content": 3}]),  # type: ignore[typeddict-item]
        Source(messages=[{"role": "user", "mood": "good"}]),  # type: ignore[typeddict-item,typeddict-unknown-key]
    ],
)
def test_what_no_message_can_carry_is_refused_here(source: Source) -> None:
    with pytest.raises(InvalidRequest, match="cannot be encoded"):
        generation(source, None, None, {}).input("tiny")


def test_a_message_may_say_who_speaks() -> None:
    source = Source(messages=[{"role": "user", "content": "Hi", "name": "Ann"}])
    (message,) = generation(source, None, None, {}).input("tiny").chat.messages
    assert (message.role, message.content, message.name) == ("user", "Hi", "Ann")


def test_bounds_are_checked_before_anything_is_sent() -> None:
    with pytest.raises(InvalidRequest) as caught:
        generation(Source("Hi"), None, None, {"temperature": 3.0})
    assert caught.value.param == "temperature"


def test_tokenize_and_detokenize_messages() -> None:
    assert tokenize_request(Source("a"), None, None) == pb.TokenizeRequest(text="a")
    assert tokenize_request(Source("a"), "m", False) == pb.TokenizeRequest(
        text="a", model="m", add_special_tokens=False
    )
    assert detokenize_request([1, 2], None) == pb.DetokenizeRequest(token_ids=[1, 2])
    with pytest.raises(InvalidRequest, match="cannot be encoded"):
        detokenize_request([-1], None)


def test_a_response_becomes_a_request_output() -> None:
    entry = pb.TokenLogprobs(
        sampled=pb.TokenLogprob(token_id=5, logprob=-0.5, token="a"),
        top=[pb.TokenLogprob(token_id=6, logprob=-0.25, token="b")],
    )
    response = pb.GenerateResponse(
        request_id="id",
        model="tiny",
        completions=[
            pb.Completion(
                text="a",
                token_ids=[5],
                logprobs=[entry],
                finish_reason=pb.FINISH_REASON_STOP,
                stop_token_id=5,
            ),
            pb.Completion(index=1, finish_reason=pb.FINISH_REASON_LENGTH),
        ],
        usage=pb.Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=1),
        timeline=pb.Timeline(phases=[pb.Timeline.Phase(name="queue", seconds=0.5)]),
        prompt_token_ids=[9],
    )
    output = request_output(response, "prompt")
    assert (output.request_id, output.prompt, output.prompt_token_ids) == ("id", "prompt", (9,))
    first, second = output.outputs
    assert (first.text, first.token_ids, first.stop_reason) == ("a", (5,), 5)
    assert first.logprobs == (TokenLogprobs(5, -0.5, ((6, -0.25),)),)
    assert (second.index, second.finish_reason) == (1, FinishReason.LENGTH)
    assert output.cached_tokens == 1
    assert output.phases == (PhaseTime("queue", 0.5),)


def test_a_completion_must_have_ended() -> None:
    response = pb.GenerateResponse(completions=[pb.Completion(text="a")])
    with pytest.raises(ServerError, match="unknown reason"):
        request_output(response, None)


def test_a_stream_ends_with_one_chunk_per_completion_and_usage_in_the_last() -> None:
    reader = ChunkReader()
    chunk = pb.GenerateChunk(index=1, text="a", token_ids=[5])
    first = list(reader.chunks(pb.GenerateStreamResponse(request_id="id", chunk=chunk)))
    assert [(c.index, c.text, c.token_ids, c.finish_reason) for c in first] == [
        (1, "a", (5,), None)
    ]
    with pytest.raises(ServerError, match="before the answer was complete"):
        reader.check_complete()
    complete = pb.GenerateComplete(
        ends=[
            pb.CompletionEnd(index=0, finish_reason=pb.FINISH_REASON_LENGTH),
            pb.CompletionEnd(index=1, finish_reason=pb.FINISH_REASON_STOP, stop_string="#"),
        ],
        usage=pb.Usage(prompt_tokens=3, completion_tokens=4),
    )
    ends = list(reader.chunks(pb.GenerateStreamResponse(request_id="id", complete=complete)))
    assert [(c.index, c.finish_reason, c.stop_reason) for c in ends] == [
        (0, FinishReason.LENGTH, None),
        (1, FinishReason.STOP, "#"),
    ]
    assert [c.usage for c in ends] == [None, Usage(3, 4)]
    reader.check_complete()


def test_messages_newer_than_the_client_are_skipped() -> None:
    reader = ChunkReader()
    assert list(reader.chunks(pb.GenerateStreamResponse(request_id="id"))) == []
