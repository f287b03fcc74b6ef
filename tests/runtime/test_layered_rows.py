"""Rows that cross the layers in several steps give the bits of those that cross them in one."""

import random
from dataclasses import dataclass, field

import pytest
import torch
from tests.support.runners import FedSequence, feed, make_model, make_runner, pages, random_tokens
from tests.support.tiny_models import tiny_config
from torch import Tensor

from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.linear import PackedLinear

CONFIGS = {
    "llama": tiny_config(num_layers=5),
    "mixtral": tiny_config("MixtralForCausalLM"),
    "qwen3 moe": tiny_config("Qwen3MoeForCausalLM"),
    "deepseek v2": tiny_config("DeepseekV2ForCausalLM"),
    "deepseek v3": tiny_config("DeepseekV3ForCausalLM"),
}
LENGTHS = [70, 33, 140]


@dataclass
class LayeredSequence:
    """A sequence of which chunks cross the layers step by step."""

    name: str
    token_ids: list[int]
    block_ids: list[int]
    num_layers: int
    position: int = 0
    chunk: int = 0
    layer: int = 0
    logits: dict[int, Tensor] = field(default_factory=dict)

    def next_rows(self, chunk: int, layers: int) -> SequenceRows:
        """The next layers of the chunk under way, or the first ones of a new chunk."""
        if self.layer == 0:
            self.chunk = min(chunk, len(self.token_ids) - self.position)
        end = min(self.layer + layers, self.num_layers)
        return SequenceRows(
            self.token_ids[self.position : self.position + self.chunk],
            self.position,
            self.block_ids,
            samples=end == self.num_layers,
            layer_start=self.layer,
            layer_end=end,
            sequence=self.name,
        )

    def took(self, rows: SequenceRows) -> None:
        """A step has computed the rows."""
        self.layer = 0 if rows.samples else rows.layer_end or 0
        self.position += self.chunk if rows.samples else 0


def one_shot(runner: ModelRunner, config: ModelConfig) -> list[FedSequence]:
    """The last logits and the pages of each sequence, each alone."""
    made, block = [], 1
    for seed, length in enumerate(LENGTHS):
        count = -(-length // 16)
        tokens = random_tokens(length, config.vocab_size, seed)
        made.append(FedSequence(tokens, list(range(block, block + count))))
        feed(runner, [(made[-1], length)])
        block += count
    return made


def step(runner: ModelRunner, rows: list[tuple[LayeredSequence, SequenceRows]]) -> None:
    logits = iter(runner.forward([group for _, group in rows]))
    for sequence, group in rows:
        sequence.took(group)
        if group.samples:
            sequence.logits[sequence.position - 1] = next(logits).clone()
    assert next(logits, None) is None


def play(runner: ModelRunner, config: ModelConfig, expected: list[FedSequence], seed: int) -> None:
    """Random company, chunks and layer groups for every sequence until all are through."""
    source = random.Random(seed)
    sequences = []
    for index, other in enumerate(expected):
        blocks = [block + 60 for block in other.block_ids]
        tokens = list(other.token_ids)
        sequences.append(LayeredSequence(f"s{index}", tokens, blocks, config.num_layers))
    runner.kv_cache.data.fill_(float("nan"))
    while left := [s for s in sequences if s.position < len(s.token_ids)]:
        chosen = source.sample(left, k=source.randrange(1, len(left) + 1))
        rows = [
            (s, s.next_rows(source.choice([1, 7, 40, 200]), source.randrange(1, 6))) for s in chosen
        ]
        step(runner, rows)
        assert runner.num_unfinished == sum(s.layer > 0 for s in sequences)
    for sequence, other in zip(sequences, expected, strict=True):
        last = len(sequence.token_ids) - 1
        assert torch.equal(sequence.logits[last], other.logits[last])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_bits_do_not_depend_on_layer_groups(config: ModelConfig) -> None:
    runner = make_runner(make_model(config))
    expected = one_shot(runner, config)
    expected_pages = [pages(runner, sequence) for sequence in expected]
    for seed in range(6):
        play(runner, config, expected, seed)
        for sequence, page in zip(expected, expected_pages, strict=True):
            blocks = [block + 60 for block in sequence.block_ids]
            assert torch.equal(runner.kv_cache.data[blocks], page)
    assert runner.batch_invariant


@dataclass
class RankJob:
    """What every rank of a model does: chunks of two sequences cross the layers step by step."""

    config: ModelConfig
    layers: int

    def __call__(self, ranks: RankGroup) -> Tensor:
        """The last logits of each sequence, [sequences, vocabulary]."""
        runner = make_runner(make_model(self.config, ranks=ranks))
        sequences = [
            LayeredSequence(f"s{i}", random_tokens(n, 131, i), blocks, self.config.num_layers)
            for i, (n, blocks) in enumerate([(50, [1, 2, 3, 4]), (9, [5])])
        ]
        while left := [s for s in sequences if s.position < len(s.token_ids)]:
            step(runner, [(s, s.next_rows(32, self.layers)) for s in left])
        assert runner.num_unfinished == 0
        return torch.stack([s.logits[len(s.token_ids) - 1] for s in sequences])


@pytest.mark.parametrize(
    "architecture", ["Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "DeepseekV2ForCausalLM"]
)
def test_ranks_agree_on_rows_of_some_layers(architecture: str) -> None:
    config = tiny_config(architecture, num_heads=4)
    whole, parts = RankJob(config, layers=3), RankJob(config, layers=2)
    expected = run_ranks(2, whole)
    for found in run_ranks(2, parts):
        assert torch.equal(found, expected[0])
    torch.testing.assert_close(expected[0], whole(OneRank()), atol=1e-5, rtol=1e-5)


def test_bits_with_rows_of_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedLinear, "supports", lambda dtype, device: False)
    config = CONFIGS["llama"]
    runner = make_runner(make_model(config))
    if not runner.batch_invariant:
        pytest.skip("the plain matrix product of this machine is not batch invariant")
    play(runner, config, one_shot(runner, config), seed=1)


def whole(sequence: LayeredSequence, layers: int) -> tuple[LayeredSequence, SequenceRows]:
    return sequence, sequence.next_rows(200, layers)


def make_pair(config: ModelConfig) -> tuple[LayeredSequence, LayeredSequence]:
    tokens = random_tokens(40, config.vocab_size, seed=3)
    first = LayeredSequence("first", tokens, [1, 2, 3], config.num_layers)
    return first, LayeredSequence("second", tokens[:20], [4, 5], config.num_layers)


def test_units_are_announced_when_their_last_layer_is_crossed() -> None:
    config = CONFIGS["llama"]
    runner = make_runner(make_model(config))
    first, _ = make_pair(config)
    heard: list[list[tuple[int, int]]] = []
    for layers in (1, 2, 1, 1):
        heard.append([])
        rows = first.next_rows(200, layers)
        runner.forward([rows], lambda *span: heard[-1].append(span), 2)
        first.took(rows)
    assert heard == [[], [(0, 2)], [(2, 4)], [(4, 5)]]


def test_a_forgotten_sequence_begins_again() -> None:
    config = CONFIGS["llama"]
    runner = make_runner(make_model(config))
    first, second = make_pair(config)
    step(runner, [whole(first, 2), whole(second, 3)])
    assert runner.forget("first")
    assert not runner.forget("first")
    assert runner.num_unfinished == 1
    (again, _), (alone, _) = make_pair(config), make_pair(config)
    step(runner, [whole(again, 5), whole(second, 5)])
    expected = make_runner(make_model(config))
    step(expected, [whole(alone, 5)])
    assert torch.equal(again.logits[39], alone.logits[39])
    assert runner.num_unfinished == 0


@pytest.mark.parametrize(
    ("layers", "samples", "message"),
    [
        ((0, 6), True, r"layers \[0, 6\) are not in \[0, 5\)"),
        ((2, 2), False, r"layers \[2, 2\) are not"),
        ((-1, 2), False, r"layers \[-1, 2\) are not"),
        ((0, 2), True, "no logits before the last layer"),
        ((2, 5), True, "'r' is to go on at"),
    ],
)
def test_refuses_layers_it_cannot_compute(
    layers: tuple[int, int], samples: bool, message: str
) -> None:
    runner = make_runner(make_model(CONFIGS["llama"]))
    rows = SequenceRows([1, 2], 0, [1], samples, 2, None, *layers, sequence="r")
    with pytest.raises(ValueError, match=message):
        runner.forward([rows])
