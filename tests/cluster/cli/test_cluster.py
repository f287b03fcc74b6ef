"""`twinflow cluster`: what it writes, and how it ends."""

from pathlib import Path

import pytest
from tests.support.command_line import run_command

from twinflow.cluster.launch.ray_up.check import example


def test_an_example(tmp_path: Path) -> None:
    ran = run_command("cluster", "example", "gcp")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == example("gcp")


def test_a_provider_without_example() -> None:
    ran = run_command("cluster", "example", "asure")
    assert ran.status == 2
    assert ran.err == "twinflow: asure: there is no example for it; did you mean azure?\n"


def test_a_file_with_faults(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(example("local"))
    ran = run_command("cluster", "check", str(path))
    assert (ran.status, ran.out) == (2, "")
    assert f"{path}: provider.head_ip 192.0.2.10: is an example" in ran.err


def test_a_file_that_is_right(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    path = tmp_path / "cluster.yaml"
    text = example("local").replace("192.0.2.", "10.1.2.").replace("~/.ssh/id_rsa", str(key))
    path.write_text(text.replace("auth_token: ~/.ray/auth_token", f"auth_token: {key}"))
    ran = run_command("cluster", "check", str(path))
    assert (ran.status, ran.out, ran.err) == (0, f"{path}: nothing is wrong with it.\n", "")


@pytest.mark.parametrize("words", [("check",), ("check", "a", "b"), ("example", "aws", "--to")])
def test_arguments_that_are_wrong(words: tuple[str, ...]) -> None:
    assert run_command("cluster", *words).status == 2
