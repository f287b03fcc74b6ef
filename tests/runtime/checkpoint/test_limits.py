"""Context length and memory (rows C15, C16)."""

import pytest
from tests.support.checkpoints import assert_one_line, small_config

from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.checkpoint.limits import check_memory, resolve_max_model_len


def test_context_length_defaults_to_the_models() -> None:
    config = small_config(max_position=512)
    assert resolve_max_model_len(None, config) == 512
    assert resolve_max_model_len(512, config) == 512
    assert resolve_max_model_len(1, config) == 1


@pytest.mark.parametrize("requested", [0, -1, 513, 2**40])
def test_a_context_that_was_never_trained_is_refused(requested: int) -> None:
    with pytest.raises(ConfigError, match=f"--max-model-len: found {requested}, expected 1 to 512"):
        resolve_max_model_len(requested, small_config(max_position=512))


def test_memory() -> None:
    check_memory(100, 100)
    with pytest.raises(CheckpointError) as caught:
        check_memory(3 << 30, 2 << 30, "weights and KV cache")
    assert_one_line(caught.value, "weights and KV cache", "3.00 GiB needed", "2.00 GiB available")
