"""How a worker's configuration travels to its process."""

import json
from pathlib import Path

import msgspec
import pytest

from twinflow.workers.config import WorkerConfig

SMALL = WorkerConfig(worker_id="decode-0", epoch=1, role="decode", model=Path("models/tiny"))
FULL = WorkerConfig(
    worker_id="decode-0",
    epoch=2**40,
    role="mixed",
    model=Path("models/with ünicode and\nlines"),
    dtype="bfloat16",
    device="cuda:1",
    max_model_len=1,
    max_num_seqs=2,
    max_num_batched_tokens=3,
    block_size=4,
    num_kv_blocks=5,
    kv_cache_memory=6,
    enable_prefix_caching=False,
    scheduler="other",
    prefill_order="another",
    admission="any",
    tbt_objective=0.25,
    ttft_objective=1.5,
    threads=7,
    host="::1",
    token="secret",
    kv_transfer_timeout_s=0.5,
    lease_s=1.5,
    max_session_backlog=8,
)


@pytest.mark.parametrize("config", [SMALL, FULL])
def test_arrives_as_it_was_sent_on_one_line(config: WorkerConfig) -> None:
    assert b"\n" not in config.encode()
    assert WorkerConfig.decode(config.encode()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1}, "unknown field `speed`"),
        ({"role": "both"}, r"Invalid enum value 'both' - at `\$.role`"),
        ({"epoch": "1"}, r"Expected `int`, got `str` - at `\$.epoch`"),
        ({"model": 5}, r"`\$.model`"),
        ({"max_model_len": 1.5}, r"Expected `int \| null`, got `float`"),
    ],
)
def test_what_is_refused(change: dict[str, object], message: str) -> None:
    content = json.loads(SMALL.encode()) | change
    with pytest.raises(msgspec.ValidationError, match=message):
        WorkerConfig.decode(json.dumps(content).encode())


def test_a_field_without_a_default_is_needed() -> None:
    with pytest.raises(msgspec.ValidationError, match="missing required field `worker_id`"):
        WorkerConfig.decode(b"{}")
