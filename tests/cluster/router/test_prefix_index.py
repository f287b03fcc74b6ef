"""What a gateway remembers of the prompts it sent: right or forgotten, never too much."""

from hypothesis import given, settings
from hypothesis import strategies as st

from twinflow.cluster.router.prefix_index import PrefixIndex


def send(index: PrefixIndex, prompt: list[int], worker: str, salt: str = "") -> None:
    """A prompt was sent to a worker."""
    index.record(index.names(prompt, salt), worker)


def hits(index: PrefixIndex, prompt: list[int], salt: str = "") -> dict[str, int]:
    """Tokens of a prompt by worker."""
    return index.hits(index.names(prompt, salt))


def test_as_many_whole_blocks_as_agree_and_never_the_last_token() -> None:
    index = PrefixIndex(block_size=4)
    send(index, list(range(12)), "p0")
    assert hits(index, list(range(12))) == {"p0": 8}
    assert hits(index, list(range(30))) == {"p0": 8}
    assert hits(index, [0, 1, 2, 3, 99, 98]) == {"p0": 4}
    assert hits(index, [1, 2, 3, 4, 5]) == {}
    assert hits(index, [0]) == {}


def test_workers_by_how_far_they_have_it() -> None:
    index = PrefixIndex(block_size=4)
    send(index, list(range(9)), "p0")
    send(index, list(range(21)), "p1")
    assert hits(index, list(range(21))) == {"p0": 8, "p1": 20}


def test_salts_keep_prompts_apart() -> None:
    index = PrefixIndex(block_size=4)
    send(index, list(range(12)), "p0", salt="mine")
    assert hits(index, list(range(12))) == {}
    assert hits(index, list(range(12)), salt="mine") == {"p0": 8}


def test_the_beginning_of_a_prompt_is_remembered_longest() -> None:
    """A prompt that is longer than the memory is still found by its beginning."""
    index = PrefixIndex(block_size=4, capacity=3)
    send(index, list(range(40)), "p0")
    assert len(index) == 3
    assert hits(index, list(range(40))) == {"p0": 12}
    send(index, [99] * 5, "p1")
    assert hits(index, list(range(40))) == {"p0": 8}


def test_a_shared_beginning_outlives_what_followed_it() -> None:
    index = PrefixIndex(block_size=4, capacity=8)
    stem = list(range(8))
    for number in range(20):
        send(index, [*stem, *[100 + number] * 9], "p0")
    assert hits(index, [*stem, 1]) == {"p0": 8}


def test_a_lost_worker_is_forgotten() -> None:
    index = PrefixIndex(block_size=4)
    send(index, list(range(9)), "p0")
    send(index, list(range(13)), "p1")
    index.forget("p1")
    assert hits(index, list(range(13))) == {"p0": 8}
    index.forget("p0")
    assert len(index) == 0


def test_a_smaller_memory_keeps_what_was_used_last() -> None:
    index = PrefixIndex(block_size=4)
    send(index, list(range(13)), "p0")
    send(index, [99] * 13, "p1")
    index.resize(4)
    assert len(index) == 4
    assert hits(index, [99] * 13) == {"p1": 12}
    assert hits(index, list(range(13))) == {"p0": 4}
    index.check_integrity()


def test_thousands_of_lives_take_no_more_room_than_one() -> None:
    index = PrefixIndex(block_size=4)
    for life in range(5000):
        send(index, list(range(9)), f"p{life}")
        index.forget(f"p{life}")
    send(index, list(range(9)), "p")
    index.check_integrity()
    assert len(index) == 2
    assert hits(index, list(range(9))) == {"p": 8}


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=14)
sent = st.lists(st.tuples(prompts, st.sampled_from(["p0", "p1"])), max_size=12)


@settings(deadline=None)
@given(sent=sent, capacity=st.integers(1, 12), prompt=prompts, lost=st.booleans())
def test_never_more_than_was_sent_and_never_beyond_the_bound(
    sent: list[tuple[list[int], str]], capacity: int, prompt: list[int], lost: bool
) -> None:
    index = PrefixIndex(block_size=2, capacity=capacity)
    for earlier, worker in sent:
        send(index, earlier, worker)
        assert len(index) <= capacity
        index.check_integrity()
    if lost:
        index.forget("p1")
        sent = [(earlier, worker) for earlier, worker in sent if worker == "p0"]
    index.check_integrity()
    for worker, tokens in hits(index, prompt).items():
        assert 0 < tokens < len(prompt)
        assert any(w == worker and earlier[:tokens] == prompt[:tokens] for earlier, w in sent)


@given(sent=sent, prompt=prompts)
def test_everything_that_was_sent_if_there_is_room(
    sent: list[tuple[list[int], str]], prompt: list[int]
) -> None:
    index = PrefixIndex(block_size=2)
    expected: dict[str, int] = {}
    for earlier, worker in sent:
        send(index, earlier, worker)
        whole = 0
        while whole + 2 < min(len(earlier), len(prompt)) and (
            earlier[: whole + 2] == prompt[: whole + 2]
        ):
            whole += 2
        expected[worker] = max(expected.get(worker, 0), whole)
    assert hits(index, prompt) == {worker: tokens for worker, tokens in expected.items() if tokens}
