"""Text, token account and finish reason of a sequence together."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tokenizers import byte_level_tokenizer

from twinflow.runtime.outputs import FinishReason, TokenDelta, TokenLogprobs
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.text.sequence_text import SequenceText, TextDelta
from twinflow.runtime.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(byte_level_tokenizer())
EOS = 2


def deltas(ids: Sequence[int], lengths: Sequence[int] = ()) -> list[TokenDelta]:
    """The tokens in parts of these lengths, then one by one; the last part ends by length."""
    parts, start = [], 0
    for length in [*lengths, *[1] * len(ids)]:
        if part := tuple(ids[start : start + length]):
            parts.append(TokenDelta(part, tuple(TokenLogprobs(token, -1.0) for token in part)))
        start += length
    parts.append(TokenDelta((), finish_reason=FinishReason.LENGTH))
    return parts


def run(params: SamplingParams, parts: Sequence[TokenDelta]) -> TextDelta:
    """All deltas up to the end as one; checks that only the last one is final."""
    sequence = SequenceText(TOKENIZER, params)
    results: list[TextDelta] = []
    for part in parts:
        results.append(sequence.push(part))
        if sequence.finished:
            break
    assert [result.finish_reason is not None for result in results[:-1]] == [False] * (
        len(results) - 1
    )
    return TextDelta(
        "".join(result.text for result in results),
        sum((result.token_ids for result in results), ()),
        sum((result.logprobs for result in results), ()),
        results[-1].finish_reason,
        results[-1].stop_reason,
    )


def test_plain_output_ends_by_length() -> None:
    ids = TOKENIZER.encode("The capital of France 🛠")
    result = run(SamplingParams(), deltas(ids))
    assert result.text == "The capital of France 🛠"
    assert result.token_ids == tuple(ids)
    assert [entry.token_id for entry in result.logprobs] == ids
    assert (result.finish_reason, result.stop_reason) == (FinishReason.LENGTH, None)


def test_the_end_shows_what_was_held_back() -> None:
    ids = TOKENIZER.encode("wait for END 🛠")[:-1]
    result = run(SamplingParams(stop=("END 🛠!", "\ufffd!")), deltas(ids))
    assert result.text == "wait for END \ufffd"


@given(
    st.text("ab \n🛠", max_size=20),
    st.lists(st.integers(1, 6)),
    st.sampled_from(["a", "ba", "b \n", "🛠a"]),
    st.booleans(),
)
def test_a_stop_string_ends_text_and_account_together(
    text: str, lengths: list[int], stop: str, include: bool
) -> None:
    ids = TOKENIZER.encode(text)
    params = SamplingParams(stop=(stop,), include_stop_str_in_output=include)
    result = run(params, deltas(ids, lengths))
    start = text.find(stop)
    if start < 0:
        assert (result.text, result.token_ids) == (text, tuple(ids))
        assert result.finish_reason is FinishReason.LENGTH
        return
    assert result.text == text[: start + len(stop) if include else start]
    assert (result.finish_reason, result.stop_reason) == (FinishReason.STOP, stop)
    count = len(result.token_ids)
    assert result.token_ids == tuple(ids[:count])
    assert len(result.logprobs) == count
    assert stop in TOKENIZER.decode(ids[:count])
    assert stop not in TOKENIZER.decode(ids[: count - 1])


def test_deltas_after_the_end_are_dropped() -> None:
    sequence = SequenceText(TOKENIZER, SamplingParams(stop=("is",)))
    ids = TOKENIZER.encode("this is it")
    assert sequence.push(TokenDelta(tuple(ids))).finish_reason is FinishReason.STOP
    assert sequence.push(TokenDelta(tuple(ids))) == TextDelta()
    assert sequence.push(TokenDelta((), finish_reason=FinishReason.ABORT)) == TextDelta()


@pytest.mark.parametrize(
    ("named", "reason"), [((), None), ((EOS,), EOS)], ids=["end of sequence", "named"]
)
def test_a_stop_token_counts_and_has_no_text(named: tuple[int, ...], reason: int | None) -> None:
    sequence = SequenceText(
        TOKENIZER, SamplingParams(stop_token_ids=named), skip_special_tokens=False
    )
    ids = TOKENIZER.encode("done")
    final = TokenDelta((*ids, EOS), finish_reason=FinishReason.STOP, stop_token_id=EOS)
    assert sequence.push(final) == TextDelta("done", (*ids, EOS), (), FinishReason.STOP, reason)


def test_a_stop_string_completed_by_the_last_token_outranks_length() -> None:
    ids = TOKENIZER.encode("one END")
    delta = TokenDelta(tuple(ids), finish_reason=FinishReason.LENGTH)
    result = SequenceText(TOKENIZER, SamplingParams(stop=("END",))).push(delta)
    assert (result.text, result.finish_reason, result.stop_reason) == (
        "one ",
        FinishReason.STOP,
        "END",
    )


def test_stop_strings_wait_for_min_tokens() -> None:
    ids = [TOKENIZER.encode(letter)[0] for letter in "xyxyxy"]
    for min_tokens, text in ((0, "x"), (2, "x"), (3, "xyx"), (5, "xyxyx"), (7, "xyxyxy")):
        params = SamplingParams(stop=("y",), min_tokens=min_tokens, max_tokens=None)
        assert run(params, deltas(ids)).text == text


def test_an_abort_keeps_what_was_generated() -> None:
    sequence = SequenceText(TOKENIZER, SamplingParams(stop=("zzz",)))
    sequence.push(TokenDelta(tuple(TOKENIZER.encode("buzz"))))
    result = sequence.push(TokenDelta((), finish_reason=FinishReason.ABORT))
    assert (result.text, result.finish_reason) == ("zz", FinishReason.ABORT)
