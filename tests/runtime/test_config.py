"""Every bound of an engine's configuration, and that there is one default for each."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from twinflow.runtime.config import EngineConfig
from twinflow.runtime.engine_plan import EngineOptions
from twinflow.workers.config import WorkerConfig


def create_config(**changes: Any) -> EngineConfig:
    """A configuration that is right but for `changes`."""
    return EngineConfig(**{"max_model_len": 64, "num_blocks": 5, **changes})


def test_the_longest_sequence_may_take_all_blocks() -> None:
    assert create_config(max_model_len=64, num_blocks=5, block_size=16).max_model_len == 64
    shared = create_config(max_model_len=128, num_blocks=5, block_size=16, block_shards=2)
    assert shared.entry_tokens == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_model_len": 65}, r"4 KV blocks of 16 tokens hold 64 tokens, less than.*\(65\)"),
        ({"block_shards": 0}, "block_shards must be at least 1"),
        ({"max_model_len": 129, "block_shards": 2}, "4 KV blocks of 32 tokens hold 128 tokens"),
        ({"num_blocks": 1}, r"0 KV blocks of 16 tokens hold 0 tokens"),
        ({"max_model_len": 0}, "max_model_len must be at least 1, not 0"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, not 0"),
        ({"max_step_failures": 0}, "max_step_failures must be at least 1"),
        ({"block_size": 0}, "block_size must be a power of two, not 0"),
        ({"block_size": -16}, "block_size must be a power of two, not -16"),
        ({"block_size": 12}, "block_size must be a power of two, not 12"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 63}, r"\(63\) must be at least.*\(64\)"),
        ({"tbt_objective": 0.0}, "tbt_objective must be more than 0 seconds, not 0.0"),
        ({"ttft_objective": -1.0}, "ttft_objective must be more than 0 seconds"),
        ({"watermark": 1.0}, "watermark must be at least 0 and below 1"),
        ({"watermark": -0.1}, "watermark must be at least 0 and below 1"),
        ({"watermark": float("nan")}, "watermark must be at least 0 and below 1"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_config(**changes)


@pytest.mark.parametrize(
    "name",
    [
        "max_num_seqs", "block_size", "enable_prefix_caching", "prefill_order",
        "admission", "tbt_objective", "ttft_objective",
    ],
)  # fmt: skip
def test_options_and_workers_have_the_engines_defaults(name: str) -> None:
    engine = {field.name: field.default for field in fields(EngineConfig)}[name]
    options = {field.name: field.default for field in fields(EngineOptions)}[name]
    worker = getattr(WorkerConfig(worker_id="w", epoch=1, role="mixed", model=Path("m")), name)
    assert engine == options == worker


def test_options_and_workers_leave_the_scheduler_and_its_rows_to_the_model() -> None:
    worker, options = (
        WorkerConfig(worker_id="w", epoch=1, role="mixed", model=Path("m")),
        EngineOptions(model=Path("m")),
    )
    assert options.scheduler == worker.scheduler == "auto"
    assert options.max_num_batched_tokens is worker.max_num_batched_tokens is None
