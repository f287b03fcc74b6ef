"""Models by architecture."""

import re
from dataclasses import replace

import pytest
import torch
from tests.support.runners import fail_on_warning
from tests.support.tiny_models import (
    ARCHITECTURES,
    EXPERT_ARCHITECTURES,
    tiny_config,
    tiny_state_dict,
)

from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.decoder import Decoder
from twinflow.runtime.models.registry import create_model, register_model

CPU = torch.device("cpu")
PLACEMENT = Placement(dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("architecture", ARCHITECTURES + EXPERT_ARCHITECTURES)
def test_every_architecture_of_the_family_can_be_made(architecture: str) -> None:
    config = tiny_config(architecture)
    weights = tiny_state_dict(config).items()
    model = create_model(config, PLACEMENT, weights, fail_on_warning)
    assert model.config is config
    assert (model.dtype, model.device) == (torch.float32, CPU)


def test_an_unknown_architecture_names_the_known_ones() -> None:
    config = replace(tiny_config(), architecture="GPT2LMHeadModel")
    with pytest.raises(
        CheckpointError, match=r"GPT2LMHeadModel is not supported.*Qwen3ForCausalLM"
    ):
        create_model(config, PLACEMENT, [], fail_on_warning)


def test_other_dtypes_are_refused() -> None:
    config = tiny_config()
    placement = Placement(dtype=torch.float16, device=CPU)
    with pytest.raises(ConfigError, match=re.escape("dtype torch.float16 is not supported")):
        create_model(config, placement, tiny_state_dict(config).items(), fail_on_warning)


def test_an_architecture_can_be_registered_only_once() -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM is already registered"):
        register_model("LlamaForCausalLM", Decoder)
