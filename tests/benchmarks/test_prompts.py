"""Request bodies: shared prefixes that are really shared, and requests that are really bad."""

from typing import Any

import msgspec
import pytest
from benchmarks.load.prompts import Api, PromptBuilder, PromptConfig
from benchmarks.load.records import Kind, PlannedRequest
from tests.support.load import plan

from twinflow.cluster.simulator.traces import Shape
from twinflow.protos.errors import ConfigError


def _builder(**changes: Any) -> PromptBuilder:
    return PromptBuilder(PromptConfig(model="m", **changes))


def _body(builder: PromptBuilder, planned: PlannedRequest) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(builder.prepare(planned, "id").body)
    return body


def test_prompts_have_their_length_and_are_reproducible() -> None:
    planned = plan(3, shape=Shape(100, 4))
    ids = _builder(token_range=(10, 20)).token_ids(planned)
    assert len(ids) == 100
    assert set(ids) <= set(range(10, 20))
    assert ids == _builder(token_range=(10, 20)).token_ids(planned)
    assert ids != _builder(token_range=(10, 20), seed=(1,)).token_ids(planned)


def test_requests_of_one_prefix_share_it_and_nothing_else() -> None:
    builder = _builder(prefix_tokens=16)
    first = builder.token_ids(PlannedRequest(0, 0.0, Shape(8, 4), prefix=1))
    second = builder.token_ids(PlannedRequest(1, 0.0, Shape(8, 4), prefix=1))
    other = builder.token_ids(PlannedRequest(2, 0.0, Shape(8, 4), prefix=0))
    assert len(first) == len(second) == 24
    assert first[:16] == second[:16]
    assert first[16:] != second[16:]
    assert other[:16] != first[:16]


def test_equal_blocks_are_equal_tokens_and_the_prompt_is_cut_to_its_length() -> None:
    builder = _builder(block_tokens=8)
    first = builder.token_ids(plan(0, shape=Shape(20, 4, 0.0, (0, 1, 2))))
    second = builder.token_ids(plan(1, shape=Shape(22, 4, 0.0, (0, 1, 3))))
    assert (len(first), len(second)) == (20, 22)
    assert first[:16] == second[:16]
    assert first[16:] != second[16:20]


def test_a_prompt_longer_than_its_blocks_is_filled_with_tokens_of_its_own() -> None:
    builder = _builder(block_tokens=4)
    first = builder.token_ids(plan(0, shape=Shape(10, 4, 0.0, (5,))))
    second = builder.token_ids(plan(1, shape=Shape(10, 4, 0.0, (5,))))
    assert len(first) == 10
    assert first[:4] == second[:4]
    assert first[4:] != second[4:]


def test_completions_ask_for_an_exact_count_of_streamed_tokens() -> None:
    builder = _builder(return_token_ids=True)
    body = _body(builder, plan())
    assert body["prompt"] == builder.token_ids(plan())
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"]) == (4, 4, True)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["return_token_ids"] is True
    assert builder.prepare(plan(), "id").expected_tokens == 4


def test_without_ignore_eos_no_count_is_expected_and_no_extension_is_sent() -> None:
    builder = _builder(ignore_eos=False)
    body = _body(builder, plan())
    assert not {"ignore_eos", "min_tokens", "return_token_ids"} & body.keys()
    assert builder.prepare(plan(), "id").expected_tokens is None


def test_chat_prompts_are_words_of_about_the_length() -> None:
    body = _body(_builder(api=Api.CHAT), plan(shape=Shape(30, 4)))
    [message] = body["messages"]
    assert message["role"] == "user"
    assert len(message["content"].split()) == 30
    assert "prompt" not in body


def test_bad_requests_differ_and_each_is_wrong() -> None:
    bodies = [_builder().prepare(plan(i, kind=Kind.BAD), "id").body for i in range(6)]
    good = _body(_builder(), plan())
    seen = set()
    for body in bodies[:5]:
        fields: dict[str, Any] = msgspec.json.decode(body)
        changed = {key for key in good if key != "prompt" and fields[key] != good[key]}
        changed |= {"prompt"} if fields["prompt"] is None else set()
        assert len(changed) == 1
        seen.add((*changed, str(fields[next(iter(changed))])))
    assert len(seen) == 5
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(bodies[5])


@pytest.mark.parametrize("token_range", [(5, 5), (-1, 5), (9, 2)])
def test_an_empty_token_range_is_refused(token_range: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="--token-range"):
        _builder(token_range=token_range)
