"""All layers in one call compute the bits that one operation at a time computes."""

from collections.abc import Iterator

import pytest
import torch
from tests.support.kernels import native_library
from tests.support.latent_models import latent_config
from tests.support.runners import FedSequence, feed, make_model, make_runner, random_tokens
from tests.support.tiny_models import tiny_config
from torch import Tensor

from twinflow.parallel.ranks.threads import run_ranks
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.kernels.base import LayerStack
from twinflow.runtime.kernels.native import NativeKernels
from twinflow.runtime.kernels.plain import TorchKernels
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.kv.layouts import model_layout
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.decoder import Decoder

CONFIGS = {
    "llama": tiny_config(),
    "qwen3": tiny_config("Qwen3ForCausalLM", num_heads=8, num_kv_heads=4, head_dim=18),
    "biases": tiny_config("Qwen2ForCausalLM"),
}


class OneByOne(NativeKernels):
    """The same kernels, each a call of its own."""

    def stack(self, *_: object) -> LayerStack | None:
        return None


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def runner_of(config: ModelConfig, kernels: type[NativeKernels]) -> ModelRunner:
    model = make_model(config, kernels=kernels(native_library()))
    assert isinstance(model, Decoder)
    assert (model.stack is None) == (kernels is OneByOne)
    return make_runner(model)


def computed(config: ModelConfig, kernels: type[NativeKernels]) -> tuple[list[Tensor], Tensor]:
    """Logits of three sequences that share steps of many sizes, and all keys and values."""
    runner = runner_of(config, kernels)
    sequences = [
        FedSequence(random_tokens(90, config.vocab_size, seed=seed), list(range(first, first + 6)))
        for seed, first in ((1, 1), (2, 7), (3, 13))
    ]
    one, two, three = sequences
    for step in ([(one, 1)], [(one, 60), (two, 5)], [(two, 1), (three, 70)], [(one, 1), (two, 1)]):
        feed(runner, step)
    logits = [each for sequence in sequences for each in sequence.logits.values()]
    return logits, runner.kv_cache.data


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_stack_computes_the_bits_of_single_operations(config: ModelConfig) -> None:
    (found, found_kv), (expected, expected_kv) = (
        computed(config, kernels) for kernels in (NativeKernels, OneByOne)
    )
    assert len(found) == len(expected) > 3
    assert all(map(torch.equal, found, expected))
    assert torch.equal(found_kv, expected_kv)


def test_layers_in_parts_are_layers_at_once() -> None:
    """Whoever hears of finished layers has them computed in several calls."""
    config, heard = CONFIGS["llama"], list[tuple[int, int]]()
    tokens = random_tokens(30, config.vocab_size, seed=4)
    results = []
    for unit in (0, 1):
        runner, sequence = runner_of(config, NativeKernels), FedSequence(tokens, [1, 2])
        rows = [sequence.next_rows(30)]
        results.append(runner.forward(rows, lambda *layers: heard.append(layers), unit).clone())
        results.append(runner.kv_cache.data)
    whole, whole_kv, parts, parts_kv = results
    assert torch.equal(whole, parts)
    assert torch.equal(whole_kv, parts_kv)
    assert heard == [(0, config.num_layers), *((i, i + 1) for i in range(config.num_layers))]


def test_other_models_have_none() -> None:
    kernels = NativeKernels(native_library())
    experts, latents = tiny_config("Qwen3MoeForCausalLM"), latent_config()
    models = [make_model(config, kernels=kernels) for config in (experts, latents)]
    models += run_ranks(2, lambda ranks: make_model(tiny_config(), ranks=ranks, kernels=kernels))
    models.append(make_model(tiny_config()))
    assert [model.stack for model in models if isinstance(model, Decoder)] == [None] * 5


def test_rows_in_bfloat16_and_other_attention_are_not_taken() -> None:
    model = make_model(tiny_config(), kernels=NativeKernels(native_library()))
    assert isinstance(model, Decoder) and model.stack is not None
    layout = model_layout(model.config, 16, "float32", 1, None)
    cache = KVCache(layout, 4, torch.device("cpu"))
    rows = torch.zeros(1, model.config.hidden_size)
    native = model.placement.kernels.head_attention(cache, model.num_heads)
    native.prepare(FlatRows.build([FedSequence([1], [1]).next_rows(1)], 16))
    assert model.stack.takes(rows, native)
    assert not model.stack.takes(rows.bfloat16(), native)
    assert not model.stack.takes(torch.cat((rows, rows)), native)
    assert not model.stack.takes(rows, TorchKernels().head_attention(cache, model.num_heads))
