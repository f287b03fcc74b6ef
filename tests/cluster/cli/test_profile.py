"""`twinflow profile`: a real measurement of a tiny model, what is written, what is refused."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace as replace_steps
from itertools import product
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.support.command_line import run_command
from tests.support.cost import CURVES, LLAMA_8B, PRICES, chunk, decodes, loads, step
from tests.support.served_models import write_tiny_model

from twinflow.cluster.cli.commands.profile import ProfileOptions, Steps, run
from twinflow.cluster.cli.parser import Invocation
from twinflow.cluster.simulator.hardware import Hardware
from twinflow.parallel.partition.layout import Grid
from twinflow.parallel.ranks.base import Seat
from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.contention import Contention
from twinflow.runtime.cost.fit import Measurement
from twinflow.runtime.cost.lanes import Lane, LaneTimes
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.cost.pair_fit import Paired, PairMeasurement
from twinflow.runtime.cost.profile import ProfileKey, load_profile, profile_path
from twinflow.runtime.engine_plan import EngineOptions, plan_engine
from twinflow.runtime.step_times import engine_key

LIMITS = ("--max-num-batched-tokens", "32", "--max-num-seqs", "4", "--max-model-len", "256")


@pytest.mark.slow
def test_a_model_is_measured_and_the_profile_predicts(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    words = ("profile", str(model), "--threads", "2", "--seconds", "0.1", *LIMITS)
    ran = run_command(*words, "--kv-cache-memory", "16MiB")
    assert (ran.status, ran.err) == (0, "")
    (path,) = model.glob("twinflow-profile-*.json")
    assert str(path) in ran.out and "held out" in ran.out and "lanes" in ran.out
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    profile = load_profile(path)
    assert profile.key.threads == 2 and profile.key.dtype == "float32"
    assert profile.held_out.steps > 10 and profile.fitted.steps > 20
    assert all(profile.times.seconds(load, share) > 0 for load in loads(3) for share in (0.5, 1.0))
    simulated = run_command(
        *("simulate", "--profile", str(path), "--rate", "1", "--requests", "3"),
        *("--input-tokens", "fixed:20", "--output-tokens", "fixed:5"),
    )
    assert "3 finished" in simulated.out


@pytest.mark.slow
def test_a_profile_of_ranks_is_found_by_their_engine(tmp_path: Path) -> None:
    """It is measured on two processes, and names them."""
    model = write_tiny_model(tmp_path / "model")
    words = ("profile", str(model), "--threads", "1", "--seconds", "0.1", *LIMITS)
    sizes = ("--tensor-parallel-size", "2", "--kv-cache-memory", "16MiB")
    ran = run_command(*words, *sizes)
    assert (ran.status, ran.err) == (0, "")
    (path,) = model.glob("twinflow-profile-*-t1-tp2.json")
    profile = load_profile(path)
    assert (profile.key.ranks, profile.key.threads) == (2, 1)
    assert profile.times.curves is None
    assert profile.held_out.steps > 5
    plan = plan_engine(EngineOptions(model=model, kv_cache_memory=1 << 24), Seat(0, 2))
    served = replace(engine_key(plan.fingerprint, "cpu", "float32", ranks=2), threads=1)
    assert profile_path(model, served) == path
    assert load_profile(path, served) == profile


def planted(options: ProfileOptions, progress: Callable[[float], None]) -> Steps:
    """A machine that takes exactly what a cost model says."""
    progress(1.0)
    truth = CostModel(LLAMA_8B, PRICES, CURVES)
    steps = [Measurement(load, truth.seconds(load, s), s) for s in (0.5, 1.0) for load in loads()]
    key = ProfileKey(model="m", device="d", dtype=options.dtype, threads=options.threads)
    return Steps(key, LLAMA_8B, steps[::2], steps[1::2])


def test_what_was_measured_is_fitted_checked_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    given = {"model": str(tmp_path), "output": str(path), "threads": "3", "dtype": "float32"}
    invocation = invocation_of(given)
    assert run(invocation, planted) == 0
    profile = load_profile(path)
    assert profile.lanes is None and profile.times.contention is None
    assert profile.key == ProfileKey(model="m", device="d", dtype="float32", threads=3)
    assert profile.held_out.p95 < 0.02
    assert path.with_suffix(".png").exists()


def test_contention_is_fitted_to_pairs_and_kept(tmp_path: Path) -> None:
    def paired(options: ProfileOptions, progress: Callable[[float], None]) -> Steps:
        found = planted(options, progress)
        truth = CostModel(LLAMA_8B, PRICES, CURVES, Contention(0.2, 0.1))
        lanes = [Lane(step(chunk(0, rows)), 0.5) for rows in (16, 64, 256)]
        lanes += [Lane(step(decode=decodes(batch, 2048)), 0.5) for batch in (1, 16, 64)]
        pairs = [
            PairMeasurement(one, two, times.seconds(one), times.seconds(one, two))
            for times in (LaneTimes(truth),)
            for one, two in product(lanes, lanes)
        ]
        return replace_steps(found, pairs=Paired("cores", Grid.of(2), pairs[::2], pairs[1::2]))

    path = tmp_path / "p.json"
    invocation = invocation_of({"model": str(tmp_path), "output": str(path), "threads": "2"})
    assert run(invocation, paired) == 0
    profile = load_profile(path)
    assert profile.times.contention is not None and profile.lanes is not None
    assert profile.times.contention.compute == pytest.approx(0.1, abs=0.02)
    assert profile.lanes.held_out.worst < 0.05
    assert Hardware.profiled(profile).grid == Grid.of(2)
    assert "lanes      cores" in invocation.stdout.getvalue()  # type: ignore[attr-defined]


def invocation_of(given: Mapping[str, object]) -> Invocation:
    return Invocation(given, [], {}, io.StringIO(), io.StringIO())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threads", "0"), "--threads '0'"),
        (("--seconds", "soon"), "--seconds 'soon'"),
        (("--tensor-parallel-size", "0"), "--tensor-parallel-size '0'"),
        (("--kv-cache-memory", "lots"), "--kv-cache-memory 'lots'"),
        (("--outptu", "x"), "did you mean --output"),
        (("--output", "/none/p.json"), "--output /none/p.json: there is no directory /none"),
        (("--plot", "/none/p.png"), "--plot /none/p.png: there is no directory /none"),
        (("--plot", "p.foo"), "--plot p.foo: a picture's name ends in"),
        (("--max-model-len", "1.23456k"), "--max-model-len '1.23456k': must be a number above 0, "),
    ],
)
def test_wrong_arguments_name_themselves(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    ran = run_command("profile", str(tmp_path), *words)
    assert ran.status == 2
    assert message in ran.err


def test_a_model_that_is_not_there_is_said_to_be_missing() -> None:
    ran = run_command("profile", "/nonexistent")
    assert (ran.status, "/nonexistent: no such directory" in ran.err) == (2, True)


def test_numbers_are_written_as_for_serve(tmp_path: Path) -> None:
    seen: list[dict[str, int]] = []

    def note(options: ProfileOptions, progress: Callable[[float], None]) -> Steps:
        seen.append(options.limits)
        return planted(options, progress)

    given = {"model": str(tmp_path), "max_model_len": "1k", "max_num_batched_tokens": "2K"}
    assert run(invocation_of(given), note) == 0
    assert seen == [{"max_model_len": 1000, "max_num_batched_tokens": 2048}]


def test_limits_that_leave_nothing_to_check_are_refused(tmp_path: Path) -> None:
    def nothing(options: ProfileOptions, progress: Callable[[float], None]) -> Steps:
        found = planted(options, progress)
        return Steps(found.key, found.shape, found.fitting, [])

    with pytest.raises(ConfigError, match="raise them"):
        run(invocation_of({"model": str(tmp_path)}), nothing)
