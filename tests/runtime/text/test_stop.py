"""Stop strings do not depend on chunks; nothing of them leaks, nothing else is held back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinflow.runtime.text.stop import StopMatcher

few_letters = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
cuts = st.lists(st.integers(0, 4), max_size=30)


def pieces(text: str, lengths: list[int]) -> list[str]:
    parts, start = [], 0
    for length in [*lengths, len(text)]:
        parts.append(text[start : start + length])
        start += length
    return parts


def naive(text: str, stop: list[str], include: bool, first_end: int = 1) -> tuple[str, str | None]:
    """Read character by character; the longest stop string that ends here wins."""
    for end in range(first_end, len(text) + 1):
        found = [each for each in stop if text[:end].endswith(each)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def run(matcher: StopMatcher, chunks: list[str], free: int = 0) -> tuple[str, str | None]:
    """Push chunks, of which the first `free` may not end the text."""
    shown = ""
    for index, chunk in enumerate(chunks):
        result = matcher.push(chunk, may_stop=index >= free)
        shown += result.text
        if result.matched is not None:
            return shown, result.matched
    return shown + matcher.flush(), None


@given(few_letters, stops, cuts, st.booleans())
def test_any_chunking_gives_what_reading_the_whole_gives(
    text: str, stop: list[str], lengths: list[int], include: bool
) -> None:
    chunks = pieces(text, lengths)
    assert run(StopMatcher(stop, include), chunks) == naive(text, stop, include)


@given(few_letters, stops, cuts, st.integers(0, 6))
def test_a_stop_string_counts_if_it_ends_where_it_may(
    text: str, stop: list[str], lengths: list[int], free: int
) -> None:
    chunks = pieces(text, lengths)
    first_end = len("".join(chunks[:free])) + 1
    assert run(StopMatcher(stop), chunks, free) == naive(text, stop, False, first_end)


@given(few_letters, stops, cuts)
def test_held_text_is_the_shortest_that_could_become_a_stop_string(
    text: str, stop: list[str], lengths: list[int]
) -> None:
    matcher, seen, shown = StopMatcher(stop), "", ""
    for chunk in pieces(text, lengths):
        result = matcher.push(chunk)
        if result.matched is not None:
            return
        seen, shown = seen + chunk, shown + result.text
        beginnings = [each[:end] for each in stop for end in range(1, len(each))]
        needed = max((len(part) for part in beginnings if seen.endswith(part)), default=0)
        assert shown == seen[: len(seen) - needed]


@pytest.mark.parametrize(
    ("stop", "chunks", "expected"),
    [
        (["\n\n"], ["one\n", "\ntwo"], ("one", "\n\n")),
        (["bc", "abcd"], ["xabcd"], ("xa", "bc")),
        (["bc", "abc"], ["xab", "c"], ("x", "abc")),
        ([".*", "[a-z]"], ["any [a-z", "] text"], ("any ", "[a-z]")),
        (["🙂"], ["so 🙂 be it"], ("so ", "🙂")),
        (["a" * 1024], ["a" * 1023, "b"], ("a" * 1023 + "b", None)),
    ],
)
def test_examples(stop: list[str], chunks: list[str], expected: tuple[str, str | None]) -> None:
    assert run(StopMatcher(stop), chunks) == expected


def test_text_after_the_end_is_a_mistake() -> None:
    matched, flushed = StopMatcher(["x"]), StopMatcher(["x"])
    matched.push("x")
    flushed.flush()
    for matcher in (matched, flushed):
        with pytest.raises(ValueError, match="after the end"):
            matcher.push("y")
