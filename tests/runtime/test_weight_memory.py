"""What a loaded model takes up, form by form."""

from dataclasses import replace

import pytest
import torch
from tests.support.checkpoints import small_config
from tests.support.kernels import kernels_named
from tests.support.latent_models import latent_config
from tests.support.tiny_models import tiny_state_dict

from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.registry import create_sharing
from twinflow.parallel.ranks.base import Seat
from twinflow.runtime.kernels import plain as torch_kernels
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.linear import PackedLinear
from twinflow.runtime.weight_memory import weight_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def placement(dtype: torch.dtype, device: torch.device) -> Placement:
    return Placement(dtype=dtype, device=device)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_the_checkpoint(tied: bool, dtype: torch.dtype) -> None:
    config = small_config(tie_word_embeddings=tied)
    count = sum(tensor.numel() for tensor in tiny_state_dict(config).values())
    assert weight_bytes(config, placement(dtype, CUDA)) == count * dtype.itemsize


@pytest.mark.skipif(not PackedLinear.supports(torch.float32, CPU), reason="needs oneDNN")
def test_packing_copies_a_head_that_is_tied() -> None:
    tied, untied = (small_config(tie_word_embeddings=tied) for tied in (True, False))
    expected = weight_bytes(untied, placement(torch.float32, CUDA))
    assert weight_bytes(untied, placement(torch.float32, CPU)) == expected
    assert weight_bytes(tied, placement(torch.float32, CPU)) == expected


@pytest.mark.skipif(not PackedLinear.supports(torch.bfloat16, CPU), reason="needs oneDNN")
@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_matrices_without_bfloat16_arithmetic(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_kernels, "has_bfloat16_arithmetic", lambda: native)
    config = small_config(tie_word_embeddings=False)
    state = tiny_state_dict(config)
    matrices = sum(tensor.numel() for tensor in state.values() if tensor.dim() == 2)
    matrices -= state["model.embed_tokens.weight"].numel()
    plain = weight_bytes(config, placement(torch.bfloat16, CUDA))
    assert weight_bytes(config, placement(torch.bfloat16, CPU)) == plain + (
        0 if native else 2 * matrices
    )


@pytest.mark.parametrize("tied", [True, False])
def test_native_kernels_keep_matrices_as_they_were_loaded(tied: bool) -> None:
    config = small_config(
        vocab_size=288, hidden_size=64, intermediate_size=96, tie_word_embeddings=tied
    )
    state = tiny_state_dict(config)
    matrices = sum(tensor.numel() for tensor in state.values() if tensor.dim() == 2)
    vectors = sum(tensor.numel() for tensor in state.values() if tensor.dim() == 1)
    copied = state["model.embed_tokens.weight"].numel() if tied else 0
    native = replace(placement(torch.float32, CPU), kernels=kernels_named("native"))
    assert weight_bytes(config, native) == 4 * (matrices + copied + vectors)
    narrow = replace(native, matrix_dtype=torch.bfloat16)
    assert weight_bytes(config, narrow) == 2 * (matrices + copied) + 4 * vectors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latent_attention_keeps_a_second_form_of_its_expansions(dtype: torch.dtype) -> None:
    """For each head, between 16 elements of a key or value and what is held of 32 columns."""
    config = latent_config(kv_rank=32, nope_dim=16, value_dim=16)
    loaded = sum(tensor.numel() for tensor in tiny_state_dict(config).values())
    whole = weight_bytes(config, placement(dtype, CUDA))
    assert whole == (loaded + 2 * 8 * (16 * 32 + 32 * 16)) * dtype.itemsize

    seat, scheme = Seat(1, 2), LatentScheme(kind="tpla", shards=2)
    plan = LatentPlan(create_sharing(scheme, seat, seat))
    half = Placement(dtype=dtype, device=CUDA, ranks=seat, latents=plan)
    # Twice the heads with half of the columns: only what does not read latents is larger.
    more = 4 * ((16 + 8) * 24 + 48 * 16 + (16 + 16) * 32)
    less = weight_bytes(config, replace(half, latents=None))
    assert weight_bytes(config, half) - less == 2 * more * dtype.itemsize


def test_the_second_form_is_padded_and_float32_on_a_cpu() -> None:
    config = latent_config(kv_rank=20, nope_dim=9, value_dim=7)
    loaded = sum(tensor.numel() for tensor in tiny_state_dict(config).values())
    absorbed = 2 * 8 * (9 * 32 + 20 * 16)
    assert weight_bytes(config, placement(torch.float32, CPU)) == (loaded + absorbed) * 4
    on_gpu = weight_bytes(config, placement(torch.bfloat16, CUDA))
    assert on_gpu == (loaded + absorbed) * 2
    assert weight_bytes(config, placement(torch.bfloat16, CPU)) >= on_gpu + absorbed * 2
