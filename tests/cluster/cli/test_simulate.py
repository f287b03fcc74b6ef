"""`twinflow simulate`: what it prints and writes, and what it refuses."""

import json
from pathlib import Path

import pytest
from tests.support.command_line import run_command
from tests.support.cost import CURVES, EXPERT_PRICES, EXPERTS, LLAMA_8B, LLAMA_8B_CONFIG, PRICES

from twinflow.runtime.cost.fit import Accuracy
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.cost.profile import Profile, ProfileKey, save_profile

LOAD = ("--input-tokens", "uniform:100:900", "--output-tokens", "fixed:20", "--requests", "30")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with nothing but a configuration."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B_CONFIG))
    return str(tmp_path)


@pytest.fixture
def profile(tmp_path: Path) -> str:
    """A measured model on two cores."""
    key = ProfileKey(model="abc", device="cpu", dtype="float32", threads=2)
    good = Accuracy(10, 0.02, 0.05, 0.06)
    times = CostModel(LLAMA_8B, PRICES, CURVES)
    save_profile(
        Profile(key=key, times=times, held_out=good, fitted=good), tmp_path / "profile.json"
    )
    return str(tmp_path / "profile.json")


def test_a_described_device_serves_a_trace(model: str, tmp_path: Path) -> None:
    trace, figures, picture = (tmp_path / name for name in ("t.csv", "out.json", "out.png"))
    rows = "".join(f"2023-11-16 18:17:0{i}.5,{500 + i},{10 + i}\n" for i in range(9))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    ran = run_command(
        *("simulate", "--device", "h100", "--model", model, "--deployment", "1P1D"),
        *("--trace", str(trace), "--requests", "20", "--slo", "ttft:500", "--slo", "tpot:50"),
        *("--json", str(figures), "--plot", str(picture)),
    )
    assert (ran.status, ran.err) == (0, "")
    assert "20 finished" in ran.out and "TBT ms" in ran.out and "100.0% of all" in ran.out
    assert json.loads(figures.read_text())["kv_transfers"] == 20
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("lanes", ["none", "dynamic", "1"])
def test_a_profile_is_enough(profile: str, lanes: str) -> None:
    words = ("simulate", "--profile", profile, "--rate", "0.05", "--lanes", lanes, *LOAD)
    ran = run_command(*words, "--requests", "5")
    assert (ran.status, ran.err) == (0, "")
    assert "5 finished" in ran.out


def test_engine_flags_arrive(profile: str) -> None:
    words = ("simulate", "--profile", profile, "--rate", "0.05", *LOAD)
    ran = run_command(*words, "--max-model-len", "500", "--scheduler", "layered", "--requests", "9")
    assert "9 finished" in ran.out
    assert run_command(*words, "--seed", "1").out != run_command(*words, "--seed", "2").out


def test_numbers_are_written_as_for_serve(profile: str) -> None:
    words = ("simulate", "--profile", profile, "--rate", "0.05", *LOAD)
    assert (
        run_command(*words, "--max-model-len", "1k", "--max-num-batched-tokens", "1k").out
        == run_command(*words, "--max-model-len", "1000", "--max-num-batched-tokens", "1000").out
    )


def test_the_scheduler_is_that_of_serve(tmp_path: Path) -> None:
    """Layered prefill for a mixture of experts, chunks for others."""
    for shape, own, other in ((LLAMA_8B, "chunked", "layered"), (EXPERTS, "layered", "chunked")):
        key = ProfileKey(model="abc", device="cpu", dtype="float32", threads=2)
        good, times = Accuracy(10, 0.02, 0.05, 0.06), CostModel(shape, EXPERT_PRICES, CURVES)
        path = tmp_path / f"{own}.json"
        save_profile(Profile(key=key, times=times, held_out=good, fitted=good), path)
        words = ("simulate", "--profile", str(path), "--rate", "0.5", *LOAD)
        found = [run_command(*words, *(("--scheduler", s) if s else ())).out for s in ("", own)]
        assert found[0] == found[1] != run_command(*words, "--scheduler", other).out


def test_objectives_are_milliseconds_as_for_serve(profile: str) -> None:
    """A second is no objective of these steps, a millisecond cuts prompts into many chunks."""
    words = ("simulate", "--profile", profile, "--rate", "0.5", *LOAD)
    plain, loose, tight = (
        run_command(*words, *flags).out
        for flags in ((), ("--tbt-objective-ms", "1e9"), ("--tbt-objective-ms", "1"))
    )
    assert plain == loose != tight


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--trace"),
        (LOAD, "--rate"),
        ((*LOAD, "--rate", "fast"), "--rate 'fast'"),
        ((*LOAD, "--rate", "1", "--requests", "-1"), "--requests '-1'"),
        ((*LOAD, "--rate", "1", "--lanes", "99"), "--lanes 99"),
        ((*LOAD, "--rate", "1", "--deployment", "2Q"), "1P2D"),
        ((*LOAD, "--rate", "1", "--scheduler", "none"), "--scheduler none"),
        ((*LOAD, "--rate", "1", "--slo", "ttft"), "--slo"),
        ((*LOAD, "--rate", "1", "--kv-cache-memory", "much"), "--kv-cache-memory"),
        ((*LOAD, "--rate", "1", "--device", "h100"), "--profile FILE, or"),
        ((*LOAD, "--rate", "1", "--json", "/none/x.json", "--requests", "1"), "cannot be written"),
        ((*LOAD, "--rate", "1", "--block-size", "7"), "power of two"),
        ((*LOAD, "--rate", "1", "--tbt-objective-ms", "0"), "--tbt-objective-ms '0'"),
    ],
)
def test_wrong_arguments_name_themselves(
    profile: str, words: tuple[str, ...], message: str
) -> None:
    ran = run_command("simulate", "--profile", profile, *words)
    assert ran.status == 2
    assert message in ran.err


def test_a_device_needs_a_model_that_fits(model: str, tmp_path: Path) -> None:
    words = ("simulate", "--device", "h100", *LOAD, "--rate", "1")
    assert "--model DIR" in run_command(*words).err
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B_CONFIG | {"num_hidden_layers": 320}))
    assert "weights need" in run_command(*words, "--model", model).err
