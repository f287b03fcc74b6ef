"""One tiny model for all worker tests, and what it says when nothing is distributed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.checkpoints import write_checkpoint
from tests.support.workers import Oracle

from twinflow.runtime.llm import LLM
from twinflow.runtime.outputs import CompletionOutput
from twinflow.runtime.sampling_params import SamplingParams


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny model."""
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def oracle(model: Path) -> Oracle:
    """What the model completes prompts with, computed offline and without a prefix cache."""
    llm = LLM(
        model,
        dtype="float32",
        max_model_len=256,
        num_kv_blocks=64,
        block_size=8,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        enable_prefix_caching=False,
    )

    def complete(prompt: Sequence[int], params: SamplingParams) -> CompletionOutput:
        return llm.generate([list(prompt)], params, use_tqdm=False)[0].outputs[0]

    return complete
