"""Tables are made again by the commands that the documents show."""

import re
from pathlib import Path

import pytest
from benchmarks.run import CHECKOUT, TABLES, command_of, main


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_the_command(name: str) -> None:
    page = (CHECKOUT / "docs" / "benchmarks.md").read_text("utf-8")
    shown = re.sub(r"\s*\\\n\s*", " ", page)
    asked = TABLES[name].format(model=".models/smollm2-135m", traces="").replace(" /", " ")
    assert f"python -m benchmarks.{asked}" in shown


def test_each_command_has_a_folder_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_of("latent", Path("m"), Path("t"), Path("out"))[-2:] == ["--out", "out/latent"]
    assert main(["--list", "--out", "there"]) == 0
    said = capsys.readouterr().err
    assert all(f"there/{name}" in said for name in TABLES)
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "nothing: unknown" in capsys.readouterr().err
