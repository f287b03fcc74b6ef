"""`twinflow calibrate tpla`: a real calibration, what is shown, and what is refused."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.calibrations import calibration, quality_report, quality_row
from tests.support.checkpoints import write_checkpoint
from tests.support.command_line import Terminal, run_command

from twinflow.cluster.cli.commands import calibrate
from twinflow.cluster.cli.commands.calibrate import Progress, run
from twinflow.cluster.cli.parser import Invocation
from twinflow.runtime.calibration.options import CalibrationOptions
from twinflow.runtime.calibration.report import QualityReport


@pytest.mark.slow
def test_a_model_is_calibrated(tmp_path: Path) -> None:
    options = calibration(tmp_path)
    ran = run_command(
        *("calibrate", "tpla", str(options.model), "--text", str(options.text)),
        *("--window", "32", "--shards", "2", "--transform", "none", "joint+8"),
    )
    assert (ran.status, ran.err) == (0, "")
    folder = options.model / "tpla"
    report = QualityReport.read(folder)
    assert report is not None and report.table() in ran.out
    assert ran.out.startswith("Loading the model\nCollecting latents\n")
    assert "\nScoring joint+8 with 2 shards\n" in ran.out
    assert ran.out.endswith(f"{folder} holds the transforms and this report.\n")
    assert {path.name for path in folder.iterdir()} == {
        *("report.json", "report.md", "report.png"),
        *("none-2.safetensors", "joint+8-2.safetensors"),
    }


def asked_for(*argv: str) -> CalibrationOptions:
    """What the command line comes down to."""
    asked = []

    def listen(options: CalibrationOptions, progress: Progress) -> QualityReport:
        asked.append(options)
        raise KeyboardInterrupt

    given = {"model": "m", "text": "t.txt"}
    for name, value in zip(argv[::2], argv[1::2], strict=True):
        given[name] = value
    with pytest.raises(KeyboardInterrupt):
        run(Invocation(given, [], {}, io.StringIO(), io.StringIO()), listen)
    return asked[0]


def test_arguments_become_options() -> None:
    assert asked_for() == CalibrationOptions(model=Path("m"), text=Path("t.txt"))
    assert asked_for(
        *("shards", "8,2,8", "tokens", "9000", "window", "64"),
        *("out", "o", "dtype", "bfloat16", "device", "cuda:0"),
    ) == CalibrationOptions(
        model=Path("m"),
        text=Path("t.txt"),
        out=Path("o"),
        shards=(8, 2),
        tokens=9000,
        window=64,
        dtype="bfloat16",
        device="cuda:0",
    )


def test_all_that_is_wrong_is_reported_at_once() -> None:
    ran = run_command(
        *("calibrate", "tpla", "m", "--text", "t", "--shards", "2,x", "--tokens", "0"),
        *("--dtype", "int8", "--windw", "3"),
    )
    assert ran.status == 2
    for words in ("4 settings", "--windw", "--shards 'x'", "--tokens '0'", "--dtype 'int8'"):
        assert words in ran.err
    ran = run_command("calibrate", "tpla", "m")
    assert ran.status == 2 and "--text" in ran.err


def test_models_without_latent_attention_are_refused(tmp_path: Path) -> None:
    options = calibration(tmp_path)
    model = write_checkpoint(tmp_path / "llama")
    ran = run_command("calibrate", "tpla", str(model), "--text", str(options.text))
    assert ran.status == 2 and "has no latent attention" in ran.err
    assert ran.out == ""


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_and_a_picture(
    tmp_path: Path, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "can_draw", lambda: False)
    report = quality_report(quality_row())

    def measure(options: CalibrationOptions, progress: Progress) -> QualityReport:
        for done in (0, 50, 100):
            progress("Collecting latents", done, 100)
        progress("Scoring joint with 2 shards", 0, 7)
        return report

    given = {"model": "m", "text": "t", "out": str(tmp_path)}
    assert run(Invocation(given, [], {}, io.StringIO(), stream), measure) == 0
    shown = stream.getvalue()
    assert shown.count("Collecting latents") >= 1 and "Scoring joint with 2 shards" in shown
    assert ("100%" in shown) == stream.isatty()
    assert report.table() in shown
    assert "no picture was drawn: matplotlib is not installed" in shown
    assert not (tmp_path / "report.png").exists()


def test_torch_is_not_loaded_for_a_complaint() -> None:
    program = (
        "import sys\nfrom twinflow.cluster.cli.main import main\n"
        "status = main(['calibrate', 'tpla', 'm', '--text', 't', '--tokens', 'x'])\n"
        "sys.exit(0 if status == 2 and 'torch' not in sys.modules else 1)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
