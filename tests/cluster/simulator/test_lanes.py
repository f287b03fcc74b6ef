"""What steps of two lanes cost while the other lane begins and ends its own."""

import pytest
from tests.support.cost import chunk, decodes, step
from tests.support.simulations import DYNAMIC, H100, STATIC, TIMES, Setting, at

from twinflow.cluster.simulator.config import Partition
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.lanes import Lanes
from twinflow.parallel.partition.control import Mode
from twinflow.runtime.cost.lanes import Lane

PROMPT = step(chunk(0, 2000))
DECODES = step(decode=decodes(32, 2000))


def lanes_of(partition: Partition) -> Lanes:
    lanes = Fleet(Setting(partition=partition).config()).workers[0].lanes
    if lanes is None:
        raise ValueError("the setting has one lane")
    return lanes


def test_who_has_the_whole_device_shares_it_until_its_step_is_over() -> None:
    lanes = lanes_of(DYNAMIC)
    lanes.resume(DECODES, frozenset("d"), 0.0)
    decode = lanes.steps[Mode.DECODE]
    alone = TIMES.seconds(Lane(DECODES, 1.0))
    assert decode.end == pytest.approx(alone)

    lanes.begin(Mode.PREFILL, PROMPT, frozenset("p"), alone / 2)
    prefill = lanes.steps[Mode.PREFILL]
    own = prefill.layout_share
    assert own in [split / 132 for split in H100.splits]
    shared = (Lane(PROMPT, own / (1 + own)), Lane(DECODES, 1 / (1 + own)))
    crowded, slowed = TIMES.pair(*shared)
    assert decode.end == pytest.approx((alone + slowed) / 2)
    assert prefill.end == pytest.approx(alone / 2 + crowded)

    over = decode.end
    assert lanes.end(Mode.DECODE, over) is decode
    assert decode.used == pytest.approx(alone / 2 + (over - alone / 2) / (1 + own))
    left = 1 - slowed / 2 / crowded
    assert prefill.share == own
    assert prefill.end == pytest.approx(over + left * TIMES.seconds(Lane(PROMPT, own)))


def test_a_step_is_slowed_by_one_that_begins_later_and_not_by_one_that_is_over() -> None:
    lanes = lanes_of(STATIC)
    lanes.begin(Mode.DECODE, DECODES, frozenset("d"), 0.0)
    lanes.begin(Mode.PREFILL, PROMPT, frozenset("p"), 0.0)
    shares = [lanes.steps[mode].layout_share for mode in (Mode.PREFILL, Mode.DECODE)]
    assert sum(shares) == pytest.approx(1.0)
    together = TIMES.pair(Lane(PROMPT, shares[0]), Lane(DECODES, shares[1]))
    assert lanes.steps[Mode.DECODE].end == pytest.approx(together[1])
    lanes.end(Mode.DECODE, together[1] / 2)
    lanes.begin(Mode.DECODE, DECODES, frozenset("d"), together[1] / 2)
    assert lanes.steps[Mode.PREFILL].end == pytest.approx(together[0])


def test_a_prompt_pays_for_the_whole_device_no_longer_than_decoding_has_it() -> None:
    """Decoding leaves it after the step in which the prompt comes."""
    fleet = Setting(partition=DYNAMIC).run(
        at((0.0, 16, 200), (0.05, 2000, 1)), max_num_batched_tokens=2048
    )
    decode = TIMES.seconds(Lane(step(decode=decodes(1, 40)), 1.0))
    shares = [split / 132 for split in H100.splits]
    least = min(TIMES.seconds(Lane(PROMPT, share)) for share in shares)
    crowded = TIMES.seconds(Lane(PROMPT, shares[-1] / (1 + shares[-1])))
    found = min(fleet.measures.ttft, key=lambda ttft: abs(ttft - least))
    assert least < found < least + 2 * decode < crowded
