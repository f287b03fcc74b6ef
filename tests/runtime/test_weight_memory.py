"""What a loaded model takes up, form by form."""

import pytest
import torch
from tests.support.checkpoints import small_config
from tests.support.tiny_models import tiny_state_dict

from twinflow.runtime import weight_memory
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
    monkeypatch.setattr(weight_memory, "_has_bfloat16_arithmetic", lambda: native)
    config = small_config(tie_word_embeddings=False)
    state = tiny_state_dict(config)
    matrices = sum(tensor.numel() for tensor in state.values() if tensor.dim() == 2)
    matrices -= state["model.embed_tokens.weight"].numel()
    plain = weight_bytes(config, placement(torch.bfloat16, CUDA))
    assert weight_bytes(config, placement(torch.bfloat16, CPU)) == plain + (
        0 if native else 2 * matrices
    )
