"""`twinflow models import`: a real conversion, what is shown, and what is refused."""

import io
import json
from pathlib import Path

import pytest
from tests.support.command_line import Terminal, run_command
from tests.support.gguf_files import GgufModel

from twinflow.cluster.cli.commands.models import Dtype, Progress, run
from twinflow.cluster.cli.parser import Invocation


def test_a_gguf_file_becomes_a_model_directory(tmp_path: Path) -> None:
    source, target = GgufModel().write(tmp_path / "tiny.gguf"), tmp_path / "tiny"
    ran = run_command("models", "import", str(source), str(target), "--dtype", "float32")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"{target} is ready: twinflow serve {target}\n"
    assert json.loads((target / "config.json").read_text())["model_type"] == "llama"
    assert list(target.glob("*.safetensors")) and (target / "tokenizer.json").exists()


def test_a_file_that_is_none_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    target = tmp_path / "model"
    ran = run_command("models", "import", str(tmp_path / "model.gguf"), str(target))
    assert ran.status == 2
    assert ran.err.startswith("twinflow: ") and "model.gguf" in ran.err
    assert not target.exists()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_is_shown_on_terminals_only(stream: io.StringIO) -> None:
    def importer(source: Path, target: Path, progress: Progress, dtype: Dtype) -> None:
        assert (source, target, dtype) == (Path("big.gguf"), Path("big"), "bfloat16")
        progress(500, 1000)
        progress(1000, 1000)

    given = {"file": "big.gguf", "directory": "big"}
    assert run(Invocation(given, [], {}, io.StringIO(), stream), importer) == 0
    assert ("100%" in stream.getvalue()) == stream.isatty()
    assert stream.getvalue().endswith("big is ready: twinflow serve big\n")
