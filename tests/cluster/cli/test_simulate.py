"""`twinflow simulate`: what it prints and writes, and what it refuses."""

import json
from pathlib import Path

import pytest
from tests.support.command_line import run_command
from tests.support.cost import CURVES, EXPERT_PRICES, EXPERTS, LLAMA_8B, LLAMA_8B_CONFIG, PRICES

from twinflow.parallel.partition.control import PREFILL_SLACK
from twinflow.parallel.partition.record import read_decisions, replay
from twinflow.runtime.cost.device import DEVICES
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
        for flags in ((), ("--tbt-objective-ms", "8e7"), ("--tbt-objective-ms", "1"))
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
        ((*LOAD, "--rate", "1", "--scheduler", "none"), "--scheduler 'none'"),
        ((*LOAD, "--rate", "1", "--slo", "ttft"), "--slo"),
        ((*LOAD, "--rate", "1", "--kv-cache-memory", "much"), "--kv-cache-memory"),
        ((*LOAD, "--rate", "1", "--device", "h100"), "--profile FILE, or"),
        (
            (*LOAD, "--rate", "1", "--json", "/none/x.json", "--requests", "1"),
            "there is no directory /none",
        ),
        ((*LOAD, "--rate", "1", "--plot", "/none/x.png"), "there is no directory /none"),
        ((*LOAD, "--rate", "1", "--plot", "x.foo"), "--plot x.foo: a picture's name ends in .jpg"),
        ((*LOAD, "--rate", "1", "--block-size", "7"), "power of two"),
        ((*LOAD, "--rate", "1", "--max-num-seqs", "0"), "--max-num-seqs '0'"),
        ((*LOAD, "--rate", "1", "--max-num-batched-tokens", "0"), "--max-num-batched-tokens '0'"),
        ((*LOAD, "--rate", "1", "--max-model-len", "0"), "--max-model-len '0'"),
        ((*LOAD, "--rate", "1", "--max-tokens", "0"), "--max-tokens '0': must be at least 1"),
        ((*LOAD, "--rate", "1", "--link", "0"), "--link '0': must be above 0"),
        ((*LOAD, "--rate", "1", "--prefill-scheduler", "laps"), "has no prefill worker"),
        ((*LOAD, "--rate", "1", "--deployment", "1P1D", "--lanes", "dynamic"), "no mixed worker"),
        ((*LOAD, "--rate", "1", "--prefill-slack", "2"), "--prefill-slack: nothing is decided"),
        ((*LOAD, "--rate", "1", "--lanes", "dynamic", "--decode-slack", "0"), "--decode-slack '0'"),
        (
            (*LOAD, "--rate", "1", "--lanes", "dynamic", "--lane-decisions", "/none"),
            "--lane-decisions /none: there is no directory",
        ),
        ((*LOAD, "--rate", "1", "--tbt-objective-ms", "0"), "--tbt-objective-ms '0'"),
    ],
)
def test_wrong_arguments_name_themselves(
    profile: str, words: tuple[str, ...], message: str
) -> None:
    ran = run_command("simulate", "--profile", profile, *words)
    assert ran.status == 2
    assert message in ran.err


def test_pools_have_policies_of_their_own(profile: str) -> None:
    """As for serve: what is said of a pool wins there, and what is said of none holds in all."""
    words = ("simulate", "--profile", profile, "--rate", "0.5", "--deployment", "1P1D", *LOAD)
    plain = run_command(*words).out
    own = run_command(*words, "--prefill-scheduler", "laps", "--prefill-prefill-order", "spf")
    assert own.status == 0 and own.out != plain
    everywhere = ("--scheduler", "laps", "--prefill-order", "spf")
    decode = ("--decode-scheduler", "chunked", "--decode-prefill-order", "fcfs")
    assert run_command(*words, *everywhere, *decode).out == own.out
    assert run_command(*words, "--prefill-scheduler", "chunked").out == plain


def test_slacks_divide_the_device_and_decisions_can_be_made_again(
    profile: str, tmp_path: Path
) -> None:
    words = ("simulate", "--profile", profile, "--rate", "0.5", *LOAD, "--lanes", "dynamic")
    ran = run_command(*words, "--decode-slack", "3", "--lane-decisions", str(tmp_path))
    assert (ran.status, ran.err) == (0, "")
    setup, decisions = read_decisions(tmp_path / "mixed-0-0.jsonl")
    assert (setup.config.prefill_slack, setup.config.decode_slack) == (PREFILL_SLACK, 3.0)
    assert any(decision.alone for decision in decisions)
    assert all(replay(setup, decision) == decision for decision in decisions)


@pytest.mark.parametrize(("processors", "step"), [(1, 1), (9, 8)])
def test_a_device_of_one_part_has_one_lane(
    model: str, tmp_path: Path, processors: int, step: int
) -> None:
    path = device(tmp_path, processors=processors, processor_step=step)
    words = ("simulate", "--device", path, "--model", model, *LOAD, "--rate", "1")
    assert "30 finished" in run_command(*words).out
    assert "cannot be divided" in run_command(*words, "--lanes", "dynamic").err


@pytest.mark.parametrize("figure", ["processors", "processor_step"])
def test_a_device_has_processors(model: str, tmp_path: Path, figure: str) -> None:
    path = device(tmp_path, **{figure: 0})
    ran = run_command("simulate", "--device", path, "--model", model, *LOAD, "--rate", "1")
    assert (ran.status, f"$.{figure}" in ran.err) == (2, True)


def device(folder: Path, **changes: int) -> str:
    """The file of a device that differs from an H100."""
    path = folder / "device.json"
    path.write_text(json.dumps(json.loads((DEVICES / "h100.json").read_text()) | changes))
    return str(path)


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ("4,5\n-6,7\n", (), "row 2 is damaged"),
        ("4,0\n0,7\n", (), "no row can be sent"),
        ("4,5\n", ("--input-tokens", "fixed:3"), "give either --trace"),
        ("4,5\n", ("--output-tokens", "fixed:3"), "give either --trace"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(
    profile: str, tmp_path: Path, rows: str, words: tuple[str, ...], message: str
) -> None:
    trace = tmp_path / "lengths.csv"
    trace.write_text("num_prefill_tokens,num_decode_tokens\n" + rows)
    flags = ("--trace", str(trace), "--rate", "1", *words)
    ran = run_command("simulate", "--profile", profile, *flags)
    assert ran.status == 2
    assert message in ran.err


def test_a_device_needs_a_model_that_fits(model: str, tmp_path: Path) -> None:
    words = ("simulate", "--device", "h100", *LOAD, "--rate", "1")
    assert "--model DIR" in run_command(*words).err
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B_CONFIG | {"num_hidden_layers": 320}))
    assert "weights need" in run_command(*words, "--model", model).err
