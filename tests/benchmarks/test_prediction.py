"""The command that compares the simulator with a server: what can be said without either."""

import argparse
from pathlib import Path

import pytest
from benchmarks import simulator
from benchmarks.prediction import full_rate, main
from tests.support.cost import LLAMA_8B, PRICES

from twinflow.cluster.simulator.lengths import Lengths
from twinflow.runtime.cost.fit import Accuracy
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.cost.profile import Profile, ProfileKey, save_profile


def test_the_rate_is_what_the_simulated_device_can_serve(tmp_path: Path) -> None:
    good = Accuracy(1, 0.0, 0.0, 0.0)
    key = ProfileKey(model="m", device="cpu", dtype="float32", threads=1)
    times, path = CostModel(LLAMA_8B, PRICES), tmp_path / "profile.json"
    save_profile(Profile(key=key, times=times, held_out=good, fitted=good), path)
    config = simulator.config_of(simulator.parse(["results", str(path), "--max-num-seqs", "1"]))
    fixed = {"input_tokens": Lengths.parse("fixed:100"), "output_tokens": Lengths.parse("fixed:1")}
    one, many = (
        full_rate(config, argparse.Namespace(seed=0, requests=count, **fixed)) for count in (1, 9)
    )
    assert one == pytest.approx(many, rel=0.01), "one at a time, each as long as the others"


def test_a_model_that_is_not_there_is_no_verdict(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = main([str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert status == simulator.EXIT_UNUSABLE
    assert "profile" in capfd.readouterr().err
