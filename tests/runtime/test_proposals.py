"""Proposals in the engine: right tokens in fewer steps, whatever is proposed and wherever it ends.

The executor is a fake that reads tokens back through block tables: KV of rejected tokens that is
read or published by anybody would change somebody's output.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from tests.support.engines import (
    EngineSpec,
    FakeExecutor,
    Guess,
    ManualClock,
    create_engine,
    create_request,
    expected_output,
    run,
)

from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.outputs import FinishReason, NumericalFault, SampledRun, SampledToken
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import Outlook
from twinflow.runtime.speculative.goodput.controller import GoodputController
from twinflow.runtime.speculative.speculation import judge
from twinflow.runtime.step_plan import RowKind

SPEC = EngineSpec(num_speculative_tokens=3, max_num_batched_tokens=32)
WRONG = 1


def right(tokens: Sequence[int], limit: int) -> list[int]:
    return expected_output(tokens, limit)


def wrong(tokens: Sequence[int], limit: int) -> list[int]:
    return [WRONG] * limit


def half_right(tokens: Sequence[int], limit: int) -> list[int]:
    return [*expected_output(tokens, limit)[: limit // 2], *[WRONG] * (limit - limit // 2)]


def tree_with(truth: bool, *, seed: int = 0) -> Guess:
    """Random trees; one path of them may come true, from any child of any branch."""
    source = random.Random(seed)

    def grow(tokens: Sequence[int], limit: int) -> Draft:
        coming = expected_output(tokens, limit)
        parents: list[int] = []
        proposed: list[int] = []
        path = [0]
        while len(parents) < limit:
            parent = source.choice([path[-1], source.randrange(len(parents) + 1)])
            taken = {t for p, t in zip(parents, proposed, strict=True) if p == parent}
            token = coming[len(path) - 1]
            right = truth and parent == path[-1] and source.random() < 0.6 and token not in taken
            parents.append(parent)
            proposed.append(token if right else 1000 + len(parents))
            if right:
                path.append(len(parents))
        return Draft(tuple(proposed), tuple(parents))

    return grow


BRANCHING = EngineSpec(num_speculative_tokens=7, max_num_batched_tokens=72, num_blocks=96)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("num_blocks", [96, 26])
def test_trees_change_no_token(seed: int, truth: bool, num_blocks: int) -> None:
    spec = replace(BRANCHING, num_blocks=num_blocks, max_model_len=64)
    engine, _ = speculating(tree_with(truth, seed=seed), spec)
    requests = [create_request(length, max_tokens=30) for length in (5, 8, 11, 16)]
    tokens = serve(engine, *requests)
    for request in requests:
        assert tokens[request.request_id] == expected_output(request.prompt_token_ids, 30)
    account = engine.counters.speculation
    assert (account.accepted_tokens > 0) == truth
    assert account.draft_tokens > 0
    # What was published is right: whoever finds it goes on as if it had computed it.
    first = requests[0]
    again = create_request([*first.prompt_token_ids, *tokens[first.request_id], 700], max_tokens=5)
    expected = expected_output(again.prompt_token_ids, 5)
    assert serve(engine, again)[again.request_id] == expected


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_an_end_inside_an_accepted_branch_is_exact(place: int) -> None:
    prompt = list(range(40, 49))
    expected = expected_output(prompt, 12)

    def beside_the_truth(tokens: Sequence[int], limit: int) -> Draft:
        coming = expected_output(tokens, 3)
        return Draft((901, *coming, 902), (0, 0, 2, 3, 1)).shortened(limit)

    for params in (
        SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(expected[place],)),
        SamplingParams(temperature=0, max_tokens=place + 1),
    ):
        engine, _ = speculating(beside_the_truth, BRANCHING)
        request = create_request(prompt, params=params)
        assert serve(engine, request)[request.request_id] == expected[: place + 1]


def test_a_request_aborted_with_a_tree_leaves_nothing() -> None:
    engine, _ = speculating(tree_with(False), BRANCHING)
    request = create_request(10, max_tokens=20)
    engine.add_request(request)
    for _ in range(3):
        engine.step()
    engine.abort(request.request_id)
    engine.check_integrity()
    assert engine.blocks.num_idle == engine.blocks.num_blocks


def test_a_failed_step_gives_the_blocks_of_branches_back() -> None:
    executor = FakeExecutor(BRANCHING.block_size, fail=lambda item: bool(item.branches))
    executor.guess = tree_with(True)
    engine, _ = create_engine(BRANCHING, executor=executor)
    request = create_request(10, max_tokens=20)
    engine.add_request(request)
    done = run(engine)
    assert "planted failure" in str(done.failures[request.request_id])
    assert engine.blocks.num_idle == engine.blocks.num_blocks


def speculating(guess: object, spec: EngineSpec = SPEC) -> tuple[Engine, FakeExecutor]:
    engine, executor = create_engine(spec)
    assert callable(guess)
    executor.guess = guess
    return engine, executor


def serve(engine: Engine, *requests: Request) -> dict[str, list[int]]:
    for request in requests:
        engine.add_request(request)
    tokens = run(engine).tokens
    assert engine.blocks.num_idle == engine.blocks.num_blocks
    return tokens


@pytest.mark.parametrize(
    ("guess", "steps", "accepted_at"),
    [(right, 4, [3, 3, 3]), (wrong, 13, []), (half_right, 8, [5])],
)
def test_tokens_are_those_without_proposals_in_as_many_steps_as_they_deserve(
    guess: object, steps: int, accepted_at: list[int]
) -> None:
    engine, executor = speculating(guess)
    request = create_request(10, max_tokens=13)
    tokens = serve(engine, request)[request.request_id]
    assert tokens == expected_output(request.prompt_token_ids, 13)
    assert len(executor.batches) == steps
    assert engine.counters.speculation.accepted_at == request.speculation.accepted_at == accepted_at
    assert engine.counters.speculation.accepted_tokens == sum(accepted_at)
    assert engine.counters.generation_tokens == 13


def test_a_step_says_several_tokens_at_once() -> None:
    engine, _ = speculating(right)
    request = create_request(10, max_tokens=9)
    engine.add_request(request)
    sizes = []
    while engine.runnable:
        engine.step()
        sizes += [len(delta.token_ids) for _, delta in engine.take_outputs().deltas]
    assert sizes == [1, 4, 4]


def test_nobody_gets_more_than_max_tokens_and_nobody_else_gets_less() -> None:
    engine, executor = speculating(right)
    short, long = create_request(6, max_tokens=3), create_request(6, max_tokens=10)
    tokens = serve(engine, short, long)
    for request in (short, long):
        expected = expected_output(request.prompt_token_ids, request.params.max_tokens or 0)
        assert tokens[request.request_id] == expected
    # Its last token needs no row: one proposed token is all that the short one has a use for.
    assert [count for _, _, count in executor.batches[1]] == [2, 4]


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 5])
def test_an_end_inside_an_accepted_run_is_exact(place: int) -> None:
    prompt = list(range(40, 49))
    expected = expected_output(prompt, 12)
    params = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(expected[place],))
    engine, _ = speculating(right)
    request = create_request(prompt, params=params)
    engine.add_request(request)
    done = run(engine)
    assert done.tokens[request.request_id] == expected[: place + 1]
    last = done.last[request.request_id]
    assert (last.finish_reason, last.stop_token_id) == (FinishReason.STOP, expected[place])
    # What was computed behind the end cannot be found: another continuation gets its own tokens.
    other = create_request([*prompt, *expected[:place], 500, 501, 502], max_tokens=6)
    tokens = serve(engine, other)[other.request_id]
    assert tokens == expected_output(other.prompt_token_ids, 6)


def test_an_end_that_comes_too_early_is_passed_over() -> None:
    prompt = list(range(60, 69))
    expected = expected_output(prompt, 9)
    params = SamplingParams(
        temperature=0, max_tokens=9, min_tokens=4, stop_token_ids=(expected[2], expected[6])
    )
    engine, _ = speculating(right)
    request = create_request(prompt, params=params)
    assert serve(engine, request)[request.request_id] == expected[:7]


def test_blocks_of_an_accepted_run_are_found_and_those_of_a_rejected_one_are_not() -> None:
    for guess in (right, wrong, half_right):
        engine, _ = speculating(guess)
        first = create_request(10, max_tokens=14)
        output = serve(engine, first)[first.request_id]
        before = engine.blocks.counters.hits
        again = create_request([*first.prompt_token_ids, *output, 700], max_tokens=5)
        tokens = serve(engine, again)[again.request_id]
        assert tokens == expected_output(again.prompt_token_ids, 5)
        # All tokens but the last have KV: 23 of them fill five blocks of four.
        assert engine.blocks.counters.hits - before == 20


def test_a_request_aborted_with_a_proposal_leaves_nothing() -> None:
    engine, _ = speculating(wrong)
    request = create_request(10, max_tokens=20)
    engine.add_request(request)
    for _ in range(3):
        engine.step()
    engine.abort(request.request_id)
    engine.check_integrity()
    assert engine.blocks.num_idle == engine.blocks.num_blocks


def test_nobody_is_preempted_for_a_guess() -> None:
    """Two requests that just fit: with proposals they need no more blocks than without."""
    spec = EngineSpec(
        num_blocks=12, num_speculative_tokens=3, max_num_batched_tokens=32, max_model_len=24
    )
    counts = []
    for guess in (None, wrong):
        engine, executor = create_engine(spec)
        executor.guess = guess
        requests = [create_request(9, max_tokens=11) for _ in range(2)]
        tokens = serve(engine, *requests)
        for request in requests:
            assert tokens[request.request_id] == expected_output(request.prompt_token_ids, 11)
        counts.append((engine.counters.preemptions, len(executor.batches)))
    assert counts[0] == counts[1]


def test_held_requests_get_no_proposals_and_verify_rows_are_called_so() -> None:
    engine, executor = speculating(right)
    held = create_request(8, hold=True)
    engine.add_request(held)
    engine.step()
    engine.release(held.request_id)
    request = create_request(8, max_tokens=5)
    kinds = []
    execute = executor.execute
    executor.execute = lambda work, on_layers: (  # type: ignore[method-assign]
        kinds.append([item.group.kind for item in work]) or execute(work, on_layers)  # type: ignore[func-returns-value]
    )
    serve(engine, request)
    assert kinds == [[RowKind.PREFILL], [RowKind.VERIFY]]


@dataclass
class TimedExecutor(FakeExecutor):
    """Steps take time."""

    clock: ManualClock
    seconds: Callable[[int], float]

    def __post_init__(self) -> None:
        super().__init__(SPEC.block_size)

    def execute(self, work: Sequence[Work], on_layers: LayersDone | None) -> list[SampledRun]:
        self.clock.advance(self.seconds(sum(item.group.token_count for item in work)))
        return super().execute(work, on_layers)


@pytest.mark.parametrize(
    ("guess", "seconds", "worth"),
    [
        (right, lambda _: 1.0, True),
        (right, lambda rows: 2.0 if rows > 2 else 0.1, False),
        (wrong, lambda _: 1.0, False),
    ],
)
def test_goodput_decides_how_much_is_proposed_and_changes_no_token(
    guess: Guess, seconds: Callable[[int], float], worth: bool
) -> None:
    executor = TimedExecutor(ManualClock(), seconds)
    executor.guess = guess
    control = GoodputController((1,) * 3)
    engine, _ = create_engine(SPEC, executor=executor, clock=executor.clock, goodput=control)
    requests = [create_request(10, max_tokens=60) for _ in range(2)]
    tokens = serve(engine, *requests)
    for request in requests:
        assert tokens[request.request_id] == expected_output(request.prompt_token_ids, 60)
    figures = engine.goodput
    assert figures is not None
    assert (figures.speculating > figures.silent) == worth
    assert figures.speculating > 0 < figures.silent


@dataclass
class LateExecutor(TimedExecutor):
    """A drafter that has to read a sequence before it can propose anything to it."""

    asked: int = 0
    met: dict[str, int] = field(default_factory=dict)
    reads_s: float = 0.2

    def outlook(self, requests: Sequence[Request], nodes: int) -> Outlook:
        return Outlook(tuple(map(self._behind, requests)), widths=(1,) * nodes)

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        self.asked += 1
        for request in requests:
            self.clock.advance(self.reads_s * self._behind(request))
            self.met[request.request_id] = request.num_tokens
        return super().propose(requests, limits)

    def _behind(self, request: Request) -> int:
        return request.num_tokens - self.met.get(request.request_id, 0)


def test_a_drafter_is_left_alone_while_catching_up_is_not_worth_it() -> None:
    executor = LateExecutor(ManualClock(), lambda rows: 0.1 * rows)
    executor.guess = right
    control = GoodputController((1,) * 3)
    engine, _ = create_engine(SPEC, executor=executor, clock=executor.clock, goodput=control)
    requests = [create_request(30, max_tokens=40) for _ in range(2)]
    tokens = serve(engine, *requests)
    for request in requests:
        assert tokens[request.request_id] == expected_output(request.prompt_token_ids, 40)
    # A question to one of them has told what catching up takes, and another what it is worth.
    assert (executor.asked, len(executor.met), control.figures.probes) == (2, 1, 1)


def test_of_a_burst_that_makes_rows_dear_no_prompt_is_read_by_the_drafter() -> None:
    """Rows are free among six; eight requests arrive together, of which three decode at first."""
    executor = LateExecutor(ManualClock(), lambda rows: 1.0 if rows <= 6 else rows)
    executor.guess = right
    control = GoodputController((1,) * 3)
    spec = replace(SPEC, num_blocks=128, max_num_seqs=8, max_num_batched_tokens=64)
    engine, _ = create_engine(spec, executor=executor, clock=executor.clock, goodput=control)
    executor.reads_s = 0.001
    alone = [create_request(20, max_tokens=30) for _ in range(3)]
    serve(engine, *alone)
    assert executor.met.keys() == {request.request_id for request in alone}
    for request in (burst := [create_request(20, max_tokens=20) for _ in range(8)]):
        engine.add_request(request)
    decoding = []
    while not all(request.output_token_ids for request in burst):
        engine.step()
        decoding.append(sum(bool(request.output_token_ids) for request in burst))
        assert len(executor.met) == len(alone)
    assert len(decoding) > 2
    serve(engine)


@dataclass
class SlowReader(LateExecutor):
    """Reads at most twenty tokens a step, and has room for one sequence."""

    def outlook(self, requests: Sequence[Request], nodes: int) -> Outlook:
        behind = [None if self.met.keys() - {r.request_id} else self._behind(r) for r in requests]
        return Outlook(tuple(behind), widths=(1,) * nodes)

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        (request,) = requests
        self.asked += 1
        read = min(self._behind(request), 20)
        self.clock.advance(0.001 * read)
        self.met[request.request_id] = self.met.get(request.request_id, 0) + read
        drafts = FakeExecutor.propose(self, requests, limits)
        return drafts if not self._behind(request) else [NOTHING]


def test_goodput_learns_from_what_was_read_and_asks_nothing_for_whom_there_is_no_room() -> None:
    executor = SlowReader(ManualClock(), lambda rows: 1.0 + 0.01 * rows)
    executor.guess = right
    control = GoodputController((1,) * 3)
    engine, _ = create_engine(SPEC, executor=executor, clock=executor.clock, goodput=control)
    requests = [create_request(50, max_tokens=40) for _ in range(2)]
    tokens = serve(engine, *requests)
    for request in requests:
        assert tokens[request.request_id] == expected_output(request.prompt_token_ids, 40)
    assert control._behind_seconds == pytest.approx(0.001)
    assert len(executor.met) == 1
    figures = control.figures
    assert figures.speculating + figures.probes == executor.asked


class FailingReader(LateExecutor):
    """Fails when it is first asked for proposals, and knows of nothing any more."""

    def outlook(self, requests: Sequence[Request], nodes: int) -> Outlook:
        return Outlook() if self.asked else super().outlook(requests, nodes)

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        self.asked += 1
        return [NOTHING] * len(requests)


def test_a_drafter_that_fails_while_it_reads_costs_no_step() -> None:
    executor = FailingReader(ManualClock(), lambda rows: 1.0 + 0.01 * rows)
    control = GoodputController((1,) * 3)
    engine, _ = create_engine(SPEC, executor=executor, clock=executor.clock, goodput=control)
    request = create_request(50, max_tokens=10)
    tokens = serve(engine, request)[request.request_id]
    assert tokens == expected_output(request.prompt_token_ids, 10)
    assert executor.asked > 0 == control.figures.speculating


def test_a_fault_behind_a_proposed_token_is_met_again_only_if_the_token_comes_true() -> None:
    fault = NumericalFault(9)
    rows: list[SampledToken | NumericalFault]
    rows = [SampledToken(5), SampledToken(6), fault, SampledToken(8)]
    assert judge(Draft.chain([5, 6, 7]), rows) == (SampledToken(5), SampledToken(6))
    assert judge(Draft.chain([4, 6, 7]), rows) == (SampledToken(5),)
    assert judge(Draft.chain([5]), [fault, *rows[:1]]) == fault
