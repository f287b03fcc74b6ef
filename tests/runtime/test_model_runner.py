"""A token's KV and logits are the same bits in any batch, and the runner keeps its contracts."""

import random
from collections.abc import Iterator

import pytest
import torch
from tests.support.kernels import kernels_named
from tests.support.runners import (
    FedSequence,
    feed,
    make_model,
    make_runner,
    pages,
    random_tokens,
)
from tests.support.tiny_models import ROPE_SCALINGS, tiny_config
from torch import Tensor

from twinflow.parallel.kv_layout import KVLayout
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.linear import PackedLinear

CONFIGS = {
    "llama": tiny_config(),
    "qwen2, odd sizes": tiny_config(
        "Qwen2ForCausalLM",
        vocab_size=257,
        hidden_size=50,
        intermediate_size=77,
        num_heads=7,
        num_kv_heads=1,
        head_dim=18,
    ),
    "qwen3": tiny_config(
        "Qwen3ForCausalLM", num_heads=4, num_kv_heads=4, head_dim=32, tie_word_embeddings=True
    ),
    "dynamic rope": tiny_config(rope_scaling=ROPE_SCALINGS["dynamic"]),
}


def make_sequences(
    config: ModelConfig, lengths: list[int], block_size: int, first_block: int = 1
) -> list[FedSequence]:
    sequences = []
    for seed, length in enumerate(lengths):
        count = -(-length // block_size)
        blocks = list(range(first_block, first_block + count))
        sequences.append(FedSequence(random_tokens(length, config.vocab_size, seed), blocks))
        first_block += count
    return sequences


def token_by_token(
    runner: ModelRunner, config: ModelConfig, lengths: list[int]
) -> tuple[list[FedSequence], list[Tensor]]:
    """Logits at every position and pages of each sequence, each token in a step of its own."""
    sequences = make_sequences(config, lengths, runner.kv_cache.layout.block_size)
    for sequence in sequences:
        while sequence.remaining:
            feed(runner, [(sequence, 1)])
    return sequences, [pages(runner, sequence) for sequence in sequences]


def assert_same_bits(
    sequences: list[FedSequence], expected: list[FedSequence], runner: ModelRunner
) -> None:
    for sequence, other in zip(sequences, expected, strict=True):
        for position, row in sequence.logits.items():
            assert torch.equal(row, other.logits[position]), f"logits at {position}"
        assert sequence.remaining == 0
    assert all(sequence.logits for sequence in sequences)
    assert runner.batch_invariant


@pytest.mark.parametrize(
    ("name", "kernels"),
    [*((name, "torch") for name in CONFIGS), ("qwen2, odd sizes", "native"), ("qwen3", "native")],
)
def test_bits_do_not_depend_on_chunking_or_company(name: str, kernels: str) -> None:
    config = CONFIGS[name]
    runner = make_runner(make_model(config, kernels=kernels_named(kernels)))
    lengths = [270, 130, 33, 5]
    expected, expected_pages = token_by_token(runner, config, lengths)

    source = random.Random(config.vocab_size)
    for _ in range(8):
        runner.kv_cache.data.fill_(float("nan"))  # what earlier owners of the blocks left
        sequences = make_sequences(config, lengths, block_size=16, first_block=100)
        while any(sequence.remaining for sequence in sequences):
            unfinished = [sequence for sequence in sequences if sequence.remaining]
            chosen = source.sample(unfinished, k=source.randrange(1, len(unfinished) + 1))
            sizes = [source.choice([1, 1, 3, 16, 37, 64, 300]) for _ in chosen]
            feed(
                runner,
                [(s, min(n, s.remaining)) for s, n in zip(chosen, sizes, strict=True)],
            )
        assert_same_bits(sequences, expected, runner)
        for sequence, page in zip(sequences, expected_pages, strict=True):
            assert torch.equal(pages(runner, sequence), page)


def test_bits_do_not_depend_on_chunking_in_long_contexts() -> None:
    config = tiny_config(num_layers=2, max_position=4096)
    runner = make_runner(make_model(config))
    (expected,) = make_sequences(config, [2200], block_size=16)
    feed(runner, [(expected, 2000)])
    while expected.remaining:
        feed(runner, [(expected, 1)])
    expected_pages = pages(runner, expected)

    for sizes in ([900, 124, 300, 676, 200], [1023, 2, 975, 63, 64, 73]):
        runner.kv_cache.data.fill_(float("nan"))
        (sequence,) = make_sequences(config, [2200], block_size=16, first_block=60)
        for size in sizes:
            feed(runner, [(sequence, size)])
        assert torch.equal(pages(runner, sequence), expected_pages)
        assert torch.equal(sequence.logits[2199], expected.logits[2199])


def test_bits_without_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain matrix products need padding rows; they leave no trace."""
    monkeypatch.setattr(PackedLinear, "supports", lambda dtype, device: False)
    config = CONFIGS["llama"]
    runner = make_runner(make_model(config))
    if not runner.batch_invariant:
        pytest.skip("the plain matrix product of this machine is not batch invariant")
    lengths = [70, 21]
    expected, expected_pages = token_by_token(runner, config, lengths)
    sequences = make_sequences(config, lengths, block_size=16, first_block=100)
    for step in ([(0, 37)], [(1, 5), (0, 1)], [(0, 32), (1, 16)]):
        feed(runner, [(sequences[index], count) for index, count in step])
    assert_same_bits(sequences, expected, runner)
    for sequence, page in zip(sequences, expected_pages, strict=True):
        assert torch.equal(pages(runner, sequence), page)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restored_threads")
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    """Two workers that exchange KV may have different numbers of cores."""
    config = CONFIGS["qwen2, odd sizes"]
    results = []
    for threads in (1, 2, 3, 4, 8):
        torch.set_num_threads(threads)
        runner = make_runner(make_model(config))
        (sequence,) = make_sequences(config, [301], block_size=16)
        for size in (200, 100, 1):
            feed(runner, [(sequence, size)])
        assert runner.batch_invariant
        results.append((pages(runner, sequence), sequence.logits[300]))
    for found in results[1:]:
        assert torch.equal(found[0], results[0][0])
        assert torch.equal(found[1], results[0][1])


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MixtralForCausalLM"])
def test_bits_do_not_depend_on_threads_that_change_between_steps(architecture: str) -> None:
    """A lane has as many as its layout gives it; matrices here are large enough to be cut up."""
    config = tiny_config(architecture, num_layers=1, hidden_size=512, intermediate_size=640)
    torch.set_num_threads(2)
    runner = make_runner(make_model(config))
    results = []
    for threads in ([1] * 4, [2, 3, 1, 2], [8, 1, 4, 1]):
        runner.kv_cache.data.zero_()
        (sequence,) = make_sequences(config, [301], block_size=16)
        for count, size in zip(threads, (200, 99, 1, 1), strict=True):
            torch.set_num_threads(count)
            feed(runner, [(sequence, size)])
        results.append((pages(runner, sequence), torch.stack([*sequence.logits.values()])))
    for found in results[1:]:
        assert torch.equal(found[0], results[0][0])
        assert torch.equal(found[1], results[0][1])


def test_nothing_reads_or_writes_the_null_block() -> None:
    config = tiny_config()
    runner = make_runner(make_model(config))
    runner.kv_cache.data[0] = float("nan")
    sequences = make_sequences(config, [200, 3], block_size=16)
    for step in ([(0, 150), (1, 1)], [(0, 49), (1, 2)], [(0, 1)]):
        feed(runner, [(sequences[index], count) for index, count in step])
    for sequence in sequences:
        assert pages(runner, sequence).isfinite().all()
        assert all(row.isfinite().all() for row in sequence.logits.values())
    assert runner.kv_cache.data[0].isnan().all()


def test_slots_behind_the_last_token_are_zero() -> None:
    config = tiny_config()
    runner = make_runner(make_model(config))
    runner.kv_cache.data.fill_(7.0)
    (sequence,) = make_sequences(config, [20], block_size=16)
    feed(runner, [(sequence, 20)])
    last = runner.kv_cache.part(0)[sequence.block_ids[-1]]
    assert (last[..., 4:, :] == 0).all()
    assert (last[..., :4, :] != 0).any()


@pytest.mark.parametrize(
    ("layers_per_unit", "expected"),
    [(0, [(0, 3)]), (1, [(0, 1), (1, 2), (2, 3)]), (2, [(0, 2), (2, 3)]), (5, [(0, 3)])],
)
def test_layers_are_announced_in_order_when_their_kv_is_final(
    layers_per_unit: int, expected: list[tuple[int, int]]
) -> None:
    config = tiny_config()
    runner = make_runner(make_model(config))
    sequences = make_sequences(config, [37, 4], block_size=16)
    data = runner.kv_cache.part(0)
    calls: list[tuple[int, int]] = []
    seen: list[Tensor] = []

    def on_layers(first: int, end: int) -> None:
        calls.append((first, end))
        seen.append(data[1:, first:end].clone())
        assert (data[1:, end:] == 0).all(), "later layers are still to be computed"

    rows = [sequence.next_rows(sequence.remaining) for sequence in sequences]
    runner.forward(rows, on_layers, layers_per_unit)
    assert calls == expected
    assert torch.equal(torch.cat(seen, dim=1), data[1:])
    written = [data[block].any() for sequence in sequences for block in sequence.block_ids]
    assert all(written)


def test_logits_of_the_groups_that_sample_in_their_order() -> None:
    config = tiny_config()
    runner = make_runner(make_model(config))
    alone = make_sequences(config, [40, 7, 12], block_size=16)
    for sequence in alone:
        feed(runner, [(sequence, sequence.remaining)])
    rows = [
        SequenceRows(s.token_ids, 0, [block + 50 for block in s.block_ids], samples=index != 1)
        for index, s in enumerate(alone)
    ]
    logits = runner.forward(rows)
    assert logits.dtype is torch.float32
    assert logits.shape == (2, config.vocab_size)
    assert torch.equal(logits[0], alone[0].logits[39])
    assert torch.equal(logits[1], alone[2].logits[11])


def test_no_logits_when_nothing_samples() -> None:
    config = tiny_config()
    runner = make_runner(make_model(config))
    logits = runner.forward([SequenceRows([1, 2], 0, [1], samples=False)])
    assert logits.shape == (0, config.vocab_size)


def test_results_are_ordinary_tensors() -> None:
    """A sampler may change logits in place."""
    runner = make_runner(make_model(tiny_config()))
    logits = runner.forward([SequenceRows([1, 2], 0, [1], samples=True)])
    logits[0, 5] = -torch.inf
    assert logits[0].argmax() != 5
    runner.kv_cache.page(1, 0, 1, 0).copy_(runner.kv_cache.page(1, 1, 1, 0))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row group"),
        ([SequenceRows([], 0, [1], True)], "row group 0: 0 tokens"),
        ([SequenceRows([1] * 17, 0, [1], True)], "17 tokens from position 0 with 1 blocks"),
        ([SequenceRows([131], 0, [1], True)], "token is not in 0..130"),
        ([SequenceRows([-1], 0, [1], True)], "token is not in 0..130"),
        ([SequenceRows([1], 0, [0], True)], r"blocks 0..0 are not in 1..9"),
        ([SequenceRows([1], 0, [10], True)], r"blocks 10..10 are not in 1..9"),
        ([SequenceRows([1] * 33, 0, [1, 2, 3], True)], "33 rows are more than 32"),
    ],
)
def test_refuses_rows_it_cannot_compute(rows: list[SequenceRows], message: str) -> None:
    runner = make_runner(make_model(tiny_config()), num_blocks=10, max_num_tokens=32)
    before = runner.kv_cache.data.normal_().clone()
    with pytest.raises(ValueError, match=message):
        runner.forward(rows)
    assert torch.equal(runner.kv_cache.data, before)


def test_the_layout_must_fit_the_model() -> None:
    model = make_model(tiny_config())
    layout = KVLayout.of_heads(num_layers=3, kv_heads=2, head_dim=8, block_size=16, dtype="float32")
    with pytest.raises(ValueError, match=r"\(3, 32, torch.float32\), the model \(3, 64, "):
        ModelRunner(model, layout, 4, 16, torch.device("cpu"))
