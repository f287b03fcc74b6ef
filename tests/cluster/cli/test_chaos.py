"""`twinflow chaos`: what is refused before anything starts."""

import os
import random
from pathlib import Path

import msgspec
import pytest
from tests.support.chaos_histories import case_of, honest_history
from tests.support.command_line import run_command

from twinflow.cluster.chaos.faults import Action, Target
from twinflow.cluster.chaos.plan import Scope, plan_faults
from twinflow.cluster.chaos.report import Report
from twinflow.cluster.chaos.runner import Outcome
from twinflow.cluster.chaos.verdict import Verdict
from twinflow.workers.fault_points import Point

ONE_CELL = ("--targets", "decode", "--actions", "kill", "--moments", "decode")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--targets", "nobody"), "--targets 'nobody': choose from prefill, decode"),
        (("--actions", "tickle"), "--actions 'tickle': choose from kill"),
        (("--moments", "never"), "--moments 'never': choose from start-up"),
        (("--seeds", "many"), "--seeds 'many': must be a whole number"),
        (("--seeds", "9-5"), "--seeds '9-5': must be a number, or two such as 5-9"),
        (("--seeds", "1-"), "--seeds '1-': must be a number"),
        (("--seeds", "1-2", "--first-seed", "3"), "--first-seed: --seeds says already"),
        (("--resume",), "--resume: say with --report"),
        (("--rate", "0"), "--rate '0': must be a number above 0"),
        (("--launcher", "ray"), "--launcher local"),
        (("--targets", "link", "--actions", "kill"), "no target, action and moment"),
        (("--seeds", "0"), "no target, action and moment"),
        (("--block-size", "3"), "--block-size"),
        (("--sedes", "3"), "did you mean --seeds?"),
    ],
)
def test_what_is_wrong_is_named(flags: tuple[str, ...], complaint: str) -> None:
    ran = run_command("chaos", "small", *flags)
    assert ran.status == 2
    assert complaint in ran.err


def test_what_cannot_be_hit_is_said() -> None:
    ran = run_command("chaos", "small", "--targets", "rank", "session")
    assert ran.status == 2
    assert "Left out: rank, because decode workers have one rank." in ran.out
    assert "Left out: session, because this is not a network that nobody else uses." in ran.out


def report_of(*seeds: int, **settings: str) -> Report:
    """What `twinflow chaos small` with one cell leaves after these seeds."""
    scope = Scope(targets=[Target.DECODE], actions=[Action.KILL], points=[Point.DECODE])
    runs = []
    for seed in seeds:
        (fault,) = plan_faults(seed, scope)
        rng = random.Random(seed)
        history = honest_history(case_of(fault, rng), rng)
        outcome = Outcome(seed=seed, fault=fault, history=history, violations=[])
        run = Verdict.of(outcome, seconds=10.0, machine_load=1.0)
        runs.append(msgspec.structs.replace(run, succeeded=run.requests))
    known = {"model": "small", "prefill": "2", "decode": "2", "dtype": "float32"}
    told = {"rate": "4", "patience": "1", "cores": str(os.cpu_count())}
    return Report.of(known | told | settings, runs)


def test_what_was_done_is_not_done_again_and_stays(tmp_path: Path) -> None:
    """Nothing is left to do, so nothing starts."""
    report = tmp_path / "matrix.json"
    report.write_text(report_of(1, 2, 3, 7).encode())
    words = (*ONE_CELL, "--seeds", "1-3", "--report", str(tmp_path / "matrix"), "--resume")
    ran = run_command("chaos", "small", *words)
    assert ran.status == 0, ran.err
    assert "3 of 3 faults were done before." in ran.out
    assert "4 faults in 1 minutes" in ran.out
    assert len(msgspec.json.decode(report.read_bytes(), type=Report).runs) == 4


def test_a_report_about_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    words = (*ONE_CELL, "--seeds", "1-3", "--report", str(tmp_path / "matrix"), "--resume")
    (tmp_path / "matrix.json").write_text(report_of(1, rate="9").encode())
    ran = run_command("chaos", "small", *words)
    assert (ran.status, "was made with other settings (rate)" in ran.err) == (2, True)
    (tmp_path / "matrix.json").write_text("{}")
    ran = run_command("chaos", "small", *words)
    assert (ran.status, "is not a report of this command" in ran.err) == (2, True)
