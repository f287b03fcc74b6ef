"""End to end against the stub: counts, classes and files. Timing is the calibration's business."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import serve
from benchmarks.load.config import BenchConfig
from benchmarks.load.prompts import Api
from benchmarks.load.runs import Arm, RunResult
from benchmarks.load.session import Session
from benchmarks.load.stub_server import MODELS, StubConfig, StubServer
from benchmarks.load.summary import summarise
from benchmarks.load.workload import Workload

from twinflow.cluster.simulator.lengths import Lengths
from twinflow.protos.errors import ConfigError, Unavailable

ROOT = Path(__file__).resolve().parents[2]
WORKLOAD = Workload(20, Lengths.parse("fixed:8"), Lengths.parse("fixed:6"))


async def _runs(config: BenchConfig) -> list[RunResult]:
    server = StubServer(StubConfig())
    port = await server.start()
    arms = tuple(replace(arm, url=f"http://127.0.0.1:{port}") for arm in config.arms)
    try:
        session = Session(replace(config, arms=arms), io.StringIO())
        return [result async for result in session.results()]
    finally:
        await server.stop()


def _config(model: str | None = "steady", workload: Workload = WORKLOAD) -> BenchConfig:
    return BenchConfig((Arm("stub", ""),), workload, model=model, rates=(100.0,), warmup=0)


@pytest.mark.parametrize("api", list(Api))
@pytest.mark.parametrize("model", ["steady", "role-first"])
async def test_every_token_of_every_request_is_counted(api: Api, model: str) -> None:
    [result] = await _runs(replace(_config(model), api=api, warmup=1))
    summary = summarise(result.planned, result.records, ())
    assert summary.outcomes == {"ok": 20}
    assert all(record.tokens == 6 for record in result.records)
    assert all(len(record.token_times_s) == 6 for record in result.records)
    assert summary.count_sources == {"usage": 20}


@pytest.mark.parametrize(
    ("model", "outcomes", "failures"),
    [
        ("error-frame", {"failed": 20}, {"error_frame": 20}),
        ("cut", {"failed": 20}, {"closed": 20}),
        ("no-done", {"failed": 20}, {"no_done": 20}),
        ("reject", {"rejected": 20}, {}),
        ("unknown", {"failed": 20}, {"http_400": 20}),
    ],
)
async def test_every_way_to_fail_has_its_class(
    model: str, outcomes: dict[str, int], failures: dict[str, int]
) -> None:
    [result] = await _runs(_config(model))
    summary = summarise(result.planned, result.records, ())
    assert (summary.outcomes, summary.failures) == (outcomes, failures)
    assert summary.goodput_rps == 0


async def test_disconnects_and_bad_requests_end_as_planned() -> None:
    workload = replace(WORKLOAD, requests=40, disconnect_share=0.3, bad_share=0.3)
    [result] = await _runs(_config(workload=workload))
    by_kind = {(record.kind.value, record.outcome.value) for record in result.records}
    assert by_kind == {("good", "ok"), ("disconnect", "disconnected"), ("bad", "bad_refused")}


async def test_the_model_is_looked_up() -> None:
    [result] = await _runs(_config(model=None))
    assert result.model == MODELS[0]


async def test_arms_alternate_and_send_the_same() -> None:
    config = replace(_config(), arms=(Arm("a", ""), Arm("b", "")), repeats=2)
    runs = await _runs(config)
    assert [run.spec.label for run in runs] == [
        "a-100rps-r0", "b-100rps-r0", "a-100rps-r1", "b-100rps-r1",
    ]  # fmt: skip
    dues = [[record.due_s for record in run.records] for run in runs]
    assert dues[0] == dues[1]
    assert dues[2] == dues[3]
    assert dues[0] != dues[2]


async def test_a_server_that_fails_the_warm_up_is_not_measured() -> None:
    with pytest.raises(Unavailable, match="failed its warm-up: error_frame: the worker died"):
        await _runs(replace(_config("error-frame"), warmup=1))


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--api-key-file"):
        Session(replace(_config(), api_key_file=tmp_path / "none"), io.StringIO())


@contextmanager
def _stub_process() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.load.stub_server"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.slow
def test_the_command_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "steady", "--rate", "50", "--requests", "20", "--repeats", "2"]
    arguments += ["--output-tokens", "fixed:4", "--slo", "ttft:5000", "--out", str(tmp_path)]
    with _stub_process() as url:
        status = serve.main(["--arm", f"a={url}", "--arm", f"b={url}", *arguments])
    # Late sends on a busy machine make a run invalid, which is no failure of the command.
    assert status in (0, serve.EXIT_INVALID)
    printed = capsys.readouterr()
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["complete"] is True
    assert [run["summary"]["outcomes"] for run in document["runs"]] == [{"ok": 20}] * 4
    assert f"--arm a={url}" in document["command"]
    assert (tmp_path / "report.md").read_text() == printed.out
    assert (tmp_path / "report.png").stat().st_size > 1000
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == 80
    assert "[b-50rps-r1]" in printed.err
    assert "20/20 sent, 20 done, 0 in flight" in printed.err


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with _stub_process() as url:
        pass
    assert serve.main(["--url", url, "--rate", "1"]) == serve.EXIT_UNUSABLE
    assert f"server: {url}/v1/models cannot be reached" in capsys.readouterr().err


def test_a_trace_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", "http://127.0.0.1:9", "--model", "m", "--trace", "none.csv"]
    assert serve.main(arguments) == serve.EXIT_UNUSABLE
    assert "--trace none.csv cannot be read" in capsys.readouterr().err
