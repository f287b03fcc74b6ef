"""A contestant's process: orders and answers, and what becomes of one that fails."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from benchmarks.peers.child import Child, Limits, PeerError
from benchmarks.peers.engines.protocol import Settings

COMMAND = (sys.executable, "-m", "tests.support.counting_engine")


def start(tmp_path: Path, variant: str, limits: Limits) -> Child:
    settings = Settings("model", variant, 1, 100, 4, 400)
    command = [*COMMAND, json.dumps(asdict(settings))]
    return Child(variant, command, dict(os.environ), tmp_path / "log.txt", limits)


def test_an_engine_answers_orders_and_may_print_what_it_likes(tmp_path: Path) -> None:
    child = start(tmp_path, "steps", Limits(60, 60))
    try:
        assert child.version == "1.2"
        assert child.generate([[1, 2], [7]], 3).tokens == [[3, 4, 5], [8, 9, 10]]
        answer = child.generate([[0]], 1)
        assert answer.tokens == [[1]]
        assert answer.cpu_s >= 0
        assert child.peak_bytes() > 1 << 20
    finally:
        child.stop()
    assert "ready, they say" in (tmp_path / "log.txt").read_text()


def test_an_engine_that_dies_is_named_with_its_last_words(tmp_path: Path) -> None:
    child = start(tmp_path, "broken", Limits(60, 60))
    try:
        with pytest.raises(PeerError, match=r"broken: ended instead.*no more numbers"):
            child.generate([[1]], 1)
    finally:
        child.stop()


def test_an_engine_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="silent: took more than 0 s to start"):
        start(tmp_path, "silent", Limits(start=0.3, stop=0.3))
