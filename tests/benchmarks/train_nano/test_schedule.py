"""What a step reads and how fast it learns."""

import pytest
import torch
from benchmarks.train_nano.schedule import CONTEXTS, Schedule

BATCH = 4096


def test_every_window_is_read_once_before_any_is_read_twice() -> None:
    ids = torch.arange(3 * BATCH + 1)
    schedule = Schedule(tokens=100 * BATCH)
    first, second = (
        torch.cat([schedule.rows(step, ids)[:, :-1] for step in steps]).flatten()
        for steps in (range(3), range(3, 6))
    )
    assert torch.equal(first.sort().values, ids[:-1])
    assert torch.equal(second.sort().values, ids[:-1])
    assert not torch.equal(first, second)


def test_a_row_has_the_token_to_be_predicted_last() -> None:
    rows = Schedule(tokens=100 * BATCH).rows(0, torch.arange(BATCH + 1))
    assert rows.shape == (16, 257)
    assert torch.equal(rows[:, 1:], rows[:, :-1] + 1)


def test_another_seed_reads_in_another_order() -> None:
    ids = torch.arange(10 * BATCH)
    rows = [Schedule(tokens=100 * BATCH, seed=seed).rows(0, ids) for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_contexts_grow_to_the_longest() -> None:
    schedule = Schedule(tokens=100 * BATCH)
    contexts = [schedule.context(step) for step in range(schedule.steps)]
    assert contexts == sorted(contexts)
    assert set(contexts) == {length for _, length in CONTEXTS}
    assert contexts[59:61] == [256, 512]


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    schedule = Schedule(tokens=100 * BATCH, warmup=10 * BATCH)
    assert [schedule.rate(step) for step in (0, 4, 9, 30, 50)] == pytest.approx(
        [0.1, 0.5, 1.0, 1.0, 1.0]
    )
    assert schedule.rate(75) == pytest.approx(0.5)
    assert schedule.rate(99) == pytest.approx(0.02)


def test_before_it_falls_the_total_may_still_be_changed() -> None:
    short, long = (Schedule(tokens=tokens * BATCH) for tokens in (100, 130))
    ids = torch.arange(200 * BATCH)
    for step in (0, 30, 49):
        assert short.rate(step) == long.rate(step)
        assert torch.equal(short.rows(step, ids), long.rows(step, ids))
