"""The command as a whole: what it loads, what help says, and how it refuses."""

import subprocess
import sys

import pytest
from tests.support.command_line import run_command

import twinflow
from twinflow.cluster.cli.environment import VARIABLES
from twinflow.cluster.cli.flags import PEER_FLAGS, flag_name
from twinflow.cluster.config import Group, ServeConfig


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        run_command(*command, "--help")
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_help_of_serve_covers_every_flag_group_and_variable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = help_of(capsys, "serve")
    for name, field in ServeConfig.model_fields.items():
        assert flag_name(name) in text
        assert " ".join(str(field.description).split())[:40] in " ".join(text.split())
    assert all(f"{group.value}:" in text for group in Group)
    assert all(name in text for name in VARIABLES)
    assert "[default: 8000]" in text and "[default: on]" in text


@pytest.mark.parametrize("command", [(), ("chat",), ("status",), ("models",), ("models", "import")])
def test_help_shows_by_example(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert "twinflow" in help_of(capsys, *command)


def test_no_hint_is_shadowed_by_a_real_flag() -> None:
    assert not {flag_name(name) for name in ServeConfig.model_fields} & set(PEER_FLAGS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_command("--version")
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"twinflow {twinflow.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("serve", "m", "--prot", "1"), "--prot: unknown flag; did you mean --port?"),
        (("serve", "--prot=1", "m"), "--prot: unknown flag; did you mean --port?"),
        (("serve", "m", "--max-model", "1"), "did you mean --max-model-len?"),
        (("serve", "m", "--page-size", "1"), "--page-size: unknown flag; it is --block-size here"),
        (("serve", "m", "--seqs", "1"), "did you mean --max-num-seqs?"),
        (("serve", "m", "--tp", "2"), PEER_FLAGS["--tp"]),
        (("serve", "m", "--tensor-parallel", "2"), "did you mean --tensor-parallel-size?"),
        (("serve", "m", "--xyzzy"), "--xyzzy: unknown flag; --help lists them all"),
        (("serve", "m", "n"), "'n': one argument too many"),
        (("serve", "m", "--port"), "--port: expected one argument"),
        (("serve",), "MODEL: missing"),
        (("chat", "--modle", "m"), "did you mean --model?"),
        (("status", "--ulr", "u"), "did you mean --url?"),
        (("models", "import", "a", "b", "--dtpye", "x"), "did you mean --dtype?"),
        (("models", "import", "a", "b", "--dtype", "int8"), "--dtype 'int8': must be one of"),
        (("models", "import", "a"), "DIR"),
        (("models",), "COMMAND"),
        (("serv",), "'serv': unknown command; did you mean serve?"),
        (("xyzzy",), "'xyzzy': unknown command; choose from "),
        (("models", "imprt"), "'imprt': unknown command; did you mean import?"),
        ((), "COMMAND"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_said_with_status_2(
    argv: tuple[str, ...], complaint: str
) -> None:
    ran = run_command(*argv)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("twinflow: ") and complaint in ran.err


def test_all_that_is_wrong_is_listed_at_once() -> None:
    ran = run_command(
        "serve", "m", "--prot", "1", "--block-size", "24", "--shutdown-timeout", "-1",
        "--host", "0.0.0.0", environ={"TWINFLOW_LOG": "x", "TWINFLOW_LOG_LEVEL": "loud"},
    )  # fmt: skip
    assert ran.status == 2
    for part in (
        "6 settings are wrong",
        "--prot",
        "--block-size '24'",
        "--shutdown-timeout '-1'",
        "--host '0.0.0.0'",
        "TWINFLOW_LOG:",
        "TWINFLOW_LOG_LEVEL 'loud'",
    ):
        assert part in ran.err


@pytest.mark.parametrize(
    "code",
    [
        "import twinflow; dir(twinflow)",
        "from twinflow.cluster.cli.main import build_parser; build_parser().format_help()",
    ],
)
def test_neither_torch_nor_ray_is_loaded_before_it_is_needed(code: str) -> None:
    heavy = "import sys; sys.exit(bool({'torch', 'ray', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", f"{code}\n{heavy}"], check=False).returncode == 0


def test_it_runs_as_a_module() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "twinflow", "serve"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("twinflow: MODEL: missing")
