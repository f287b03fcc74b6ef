"""A drafter with a model: it says what its model says, and keeps KV and blocks in order."""

import random

import pytest
from tests.support.drafted import FakeSequence, FedRunner, caught_up, proposed, rounds
from tests.support.engines import create_request
from tests.support.runners import FedSequence, feed, make_model, make_runner
from tests.support.tiny_models import tiny_config

from twinflow.protos.errors import HandoffError
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.models.base import Model
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import DraftQuery, Outlook
from twinflow.runtime.speculative.drafters.draft_model import DraftModelDrafter
from twinflow.runtime.speculative.speculation import Speculation

GREEDY = SamplingParams(temperature=0, max_tokens=30)
PROMPT = [5, 9, 2, 77, 31, 8, 40]


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(tiny_config(num_layers=2))


def drafter(model: Model, num_blocks: int = 30, max_rows: int = 16) -> DraftModelDrafter:
    runner = make_runner(model, num_blocks, block_size=4, max_num_tokens=max_rows)
    vocab_size = model.config.vocab_size
    return DraftModelDrafter(runner, Sampler(vocab_size), vocab_size=vocab_size, max_rows=max_rows)


def continuation(model: Model, count: int) -> list[int]:
    """What the model says, one token after the other."""
    runner = make_runner(model, 30, block_size=4)
    sequence = FedSequence(list(PROMPT), range(1, 20))
    tokens = list(PROMPT)
    for _ in range(count):
        feed(runner, [(sequence, len(tokens) - sequence.position)])
        tokens.append(int(sequence.logits[len(tokens) - 1].argmax()))
        sequence.token_ids = tokens
    return tokens[len(PROMPT) :]


def sequence(name: str = "a") -> FakeSequence:
    return FakeSequence(list(PROMPT), name, params=GREEDY, prompt_length=len(PROMPT))


def test_it_proposes_what_its_model_says(model: Model) -> None:
    expected = continuation(model, 21)
    assert proposed(drafter(model), sequence(), 5) == tuple(expected[:5])
    assert caught_up(drafter(model, max_rows=2), sequence(), 5) == tuple(expected[:5])
    assert rounds(drafter(model), sequence(), expected, 6) == 3


def test_rejected_tokens_leave_no_trace(model: Model) -> None:
    rng = random.Random(2)
    drafting, fresh = drafter(model), drafter(model)
    one = sequence()
    for number in range(6):
        guess = proposed(drafting, one, 4)
        taken = list(guess[: rng.randrange(3)])
        one.all_tokens.extend([*taken, rng.randrange(model.config.vocab_size)])
        again = FakeSequence(
            list(one.all_tokens), str(number), params=GREEDY, prompt_length=len(PROMPT)
        )
        assert proposed(drafting, one, 4) == caught_up(fresh, again, 4)
        fresh.forget(again)


def test_what_it_has_to_catch_up_with_is_known_before(model: Model) -> None:
    drafting, one = drafter(model), sequence()
    assert drafting.outlook([one], 5) == Outlook(behind=(len(PROMPT) - 1,))
    one.all_tokens.extend([*proposed(drafting, one, 4)[:2], 3])
    # Proposed tokens that came true are computed already.
    assert drafting.outlook([one, sequence("b")], 5).behind == (0, len(PROMPT) - 1)
    proposed(drafting, one, 1)
    one.all_tokens.extend([3] * 6)
    assert drafting.outlook([one], 5).behind == (5,)
    proposed(drafting, one)
    assert drafting.outlook([one], 5).behind == (0,)


def test_several_sequences_are_drafted_together(model: Model) -> None:
    alone = [proposed(drafter(model), sequence(), limit) for limit in (1, 4)]
    queries = [DraftQuery(sequence(name), limit) for name, limit in (("a", 1), ("b", 4))]
    assert [draft.tokens for draft in drafter(model).propose(queries)] == alone


def test_reading_a_prompt_takes_a_pass_a_step_and_nobody_else_waits_for_it(model: Model) -> None:
    """Two long prompts come to one that is drafted for: no pass has more rows than a step."""
    drafting, ready = drafter(model, num_blocks=60, max_rows=12), sequence("ready")
    fed = FedRunner(drafting._runner)
    drafting._runner = fed
    assert proposed(drafting, ready, 2)
    late = [
        FakeSequence(list(range(3, 33)), name, params=GREEDY, prompt_length=30) for name in "xy"
    ]
    sequences, behind, drafts = [*late, ready], [29, 29, 0], list[Draft]()
    while any(behind):
        ready.all_tokens += [7, 50]
        fed.rows.clear()
        drafts = drafting.propose([DraftQuery(one, 2) for one in sequences])
        drafting.check_integrity()
        assert max(fed.rows) <= 12
        assert len(drafts[-1]) == 2
        now = [left or 0 for left in drafting.outlook(sequences, 2).behind]
        assert [bool(draft) for draft in drafts] == [left == 0 for left in now]
        assert sum(behind) > sum(now)
        behind = now
    whole = drafter(model, num_blocks=60, max_rows=60)
    assert drafts[1].tokens == proposed(whole, late[1], 2)


def executing(model: Model, drafting: DraftModelDrafter) -> ModelExecutor:
    runner = make_runner(model, 30, block_size=4)
    size, speculation = model.config.vocab_size, Speculation(drafting)
    return ModelExecutor(
        runner, Sampler(size), vocab_size=size, layers_per_unit=1, speculation=speculation
    )


def test_a_preempted_sequence_gives_its_blocks_back(model: Model) -> None:
    drafting, request = drafter(model), create_request(PROMPT, params=GREEDY)
    executor = executing(model, drafting)
    executor.admit(request)
    drafts = executor.propose([request], [3])
    assert drafting.num_idle_blocks < 29
    executor.restart(request.request_id)
    assert drafting.num_idle_blocks == 29
    assert executor.propose([request], [3]) == drafts
    executor.forget(request.request_id)
    assert drafting.num_idle_blocks == 29


def test_one_that_has_failed_gives_blocks_back_and_takes_no_prompts(model: Model) -> None:
    drafting, request = drafter(model), create_request(PROMPT, params=GREEDY)
    executor = executing(model, drafting)
    executor.admit(request)
    executor.propose([request], [3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting, "_extend", None)
        assert executor.propose([request], [3]) == [NOTHING]
    assert drafting.kv.expect("b", PROMPT) is None
    with pytest.raises(HandoffError, match="the drafter has failed, and does not compute"):
        drafting.kv.hold("c", PROMPT)
    executor.forget(request.request_id)
    assert drafting.num_idle_blocks == 29


def test_a_sequence_without_room_goes_without_proposals(model: Model) -> None:
    drafting = drafter(model, num_blocks=5)
    first, second = sequence("a"), sequence("b")
    assert len(proposed(drafting, first, 4)) == 4
    assert proposed(drafting, second, 4) == ()
    drafting.forget(first)
    assert len(proposed(drafting, second, 4)) == 4
    drafting.forget(second)
    assert drafting.num_idle_blocks == 4
