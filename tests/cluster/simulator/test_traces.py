"""Readers of the published trace formats."""

import json
from pathlib import Path

import pytest

from twinflow.cluster.simulator.traces import Shape, read_trace
from twinflow.protos.errors import ConfigError


def test_azure_times_count_from_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 23:59:59.9799600,4808,10\n"
        "2023-11-17 00:00:00.0319600,3180,8\n"
        "2023-11-17 00:00:01,5,0\n"
    )
    first, second = read_trace(path)
    assert first == Shape(4808, 10, 0.0)
    assert (second.input_tokens, second.output_tokens) == (3180, 8)
    assert second.at_s == pytest.approx(0.052, abs=1e-5)


def test_length_files_have_no_times(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.csv"
    path.write_text(
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n74,918,992,0.08\n"
    )
    assert read_trace(path) == [Shape(74, 918)]


def test_mooncake_keeps_blocks_and_orders_by_time(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    rows = [
        {"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]},
        {"timestamp": 1000, "input_length": 700, "output_length": 6, "hash_ids": [0, 8]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert read_trace(path) == [Shape(700, 6, 0.0, (0, 8)), Shape(600, 5, 2.0, (0, 7))]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no rows"),
        ("other.csv", "a,b\n1,2\n", r"columns \['a', 'b'\]"),
        ("bad.csv", "num_prefill_tokens,num_decode_tokens\n4,5\n6,x\n", "row 2 is damaged"),
        ("short.csv", "num_prefill_tokens,num_decode_tokens\n4\n", "row 1 is damaged"),
        ("below.csv", "num_prefill_tokens,num_decode_tokens\n4,5\n6,-1\n", "row 2 is damaged"),
        ("zero.csv", "num_prefill_tokens,num_decode_tokens\n4,0\n0,1\n", "no row can be sent"),
        ("bad.jsonl", "{\n", "cannot be read"),
    ],
)
def test_damaged_traces_say_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_trace(path)


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.csv cannot be read"):
        read_trace(tmp_path / "missing.csv")
