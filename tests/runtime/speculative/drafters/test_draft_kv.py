"""A prompt's KV leaves one drafter and comes to another, which drafts as if it were its own."""

import pytest
from tests.support.drafted import FakeSequence, FedRunner, caught_up, proposed
from tests.support.runners import make_model, make_runner
from tests.support.tiny_models import tiny_config

from twinflow.protos.errors import HandoffError
from twinflow.runtime.models.base import Model
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.drafters.draft_kv import DraftedPrompt
from twinflow.runtime.speculative.drafters.draft_model import DraftModelDrafter
from twinflow.runtime.speculative.drafters.draft_trees import TreeModelDrafter
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan
from twinflow.runtime.speculative.trees.config import TreeConfig

PROMPT = [5, 9, 2, 77, 31, 8, 40, 11, 63]
BLOCKS = 16


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(tiny_config(num_layers=4))


def drafter(model: Model, tree: TreeConfig | None = None, max_rows: int = 4) -> DraftModelDrafter:
    runner = make_runner(model, BLOCKS, block_size=4, max_num_tokens=16)
    size, plan = model.config.vocab_size, LayerPlan.uniform(4, 2)
    if tree is None:
        return DraftModelDrafter(
            runner, Sampler(size), vocab_size=size, max_rows=max_rows, plan=plan
        )
    return TreeModelDrafter(
        runner, Sampler(size), tree, vocab_size=size, max_rows=max_rows, plan=plan
    )


def sequence(name: str, more: tuple[int, ...] = (3,)) -> FakeSequence:
    params = SamplingParams(temperature=0, max_tokens=30)
    return FakeSequence([*PROMPT, *more], name, params=params, prompt_length=len(PROMPT))


def sent(drafting: DraftModelDrafter, name: str) -> list[int]:
    """Compute the prompt for another worker; where it is."""
    drafting.kv.hold(name, PROMPT)
    ends: list[int] = []
    blocks: list[int] = []
    while not ends or ends[-1] < len(PROMPT):
        start, end, table = drafting.kv.compute(name)
        assert start == (ends[-1] if ends else 0)
        ends.append(end)
        blocks = list(table)
    assert ends == [4, 8, 9]
    drafting.check_integrity()
    return blocks


def copied(source: DraftModelDrafter, blocks: list[int], to: DraftModelDrafter, name: str) -> None:
    """Hand the prompt over."""
    prompt = to.kv.expect(name, PROMPT)
    assert isinstance(prompt, DraftedPrompt)
    to.kv.cache.data[list(prompt.blocks)] = source.kv.cache.data[blocks]
    to.kv.arrived(name, whole=True)
    source.kv.drop(name)


@pytest.mark.parametrize("tree", [None, TreeConfig(type="beam", width=2, depth=3)], ids=str)
def test_a_drafter_goes_on_from_kv_that_has_come(model: Model, tree: TreeConfig | None) -> None:
    there, here, alone = (drafter(model, tree) for _ in range(3))
    copied(there, sent(there, "a"), here, "a")
    assert here.outlook([sequence("a")], 4).behind == (0,)
    fed = FedRunner(here._runner)
    here._runner = fed
    moved, own = sequence("a"), sequence("a")
    for _ in range(3):
        assert proposed(here, moved) == caught_up(alone, own)
        here.check_integrity()
        for each in (moved, own):
            each.all_tokens += [7, 50]
    assert fed.rows[0] == 1, "the prompt was computed again"
    for drafting in (there, here):
        drafting.forget(moved)
        assert drafting.num_idle_blocks == BLOCKS - 1


def test_nothing_is_proposed_while_kv_is_on_its_way(model: Model) -> None:
    drafting, one = drafter(model), sequence("a")
    assert drafting.kv.expect("a", PROMPT) is not None
    assert drafting.kv.expect("a", PROMPT) is None, "it is on its way already"
    assert proposed(drafting, one) == ()
    drafting.kv.arrived("a", whole=False)
    assert caught_up(drafting, one) == caught_up(drafter(model), sequence("a"))
    drafting.forget(one)
    assert drafting.num_idle_blocks == BLOCKS - 1


def test_blocks_that_are_written_to_outlive_their_sequence(model: Model) -> None:
    drafting = drafter(model)
    for whole in (True, False):
        assert drafting.kv.expect("a", PROMPT) is not None
        drafting.forget(sequence("a"))
        assert drafting.num_idle_blocks == BLOCKS - 4
        drafting.check_integrity()
        drafting.kv.arrived("a", whole=whole)
        assert drafting.num_idle_blocks == BLOCKS - 1
    assert drafting.kv.expect("a", PROMPT) is not None
    drafting.kv.arrived("a", whole=True)
    drafting.forget(sequence("a"))
    assert (drafting.num_idle_blocks, drafting.kv.under_way) == (BLOCKS - 1, 0)


def test_prompts_without_room_are_refused(model: Model) -> None:
    drafting = drafter(model)
    for name in "abcde":
        drafting.kv.hold(name, PROMPT)
    with pytest.raises(HandoffError, match="no 3 idle blocks for the prompt of f"):
        drafting.kv.hold("f", PROMPT)
    assert drafting.kv.expect("f", PROMPT) is None
    for name in "abcdef":
        drafting.kv.drop(name)
    assert drafting.num_idle_blocks == BLOCKS - 1


def test_it_learns_how_long_prompts_take(model: Model) -> None:
    drafting = drafter(model, max_rows=16)
    drafting.kv._clock = iter([5.0, 9.0]).__next__
    proposed(drafting, FakeSequence([3] * 20, "b", prompt_length=20))
    assert drafting.kv.token_s == pytest.approx(4.0 / 16)
    drafting.kv._clock = iter([5.0, 9.0]).__next__
    proposed(drafting, sequence("a"))
    assert drafting.kv.token_s == pytest.approx(4.0 / 16), "too few rows to tell"
