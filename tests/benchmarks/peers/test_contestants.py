"""Who takes part, what is asked of an installation, and which weights a model multiplies with."""

from pathlib import Path

import pytest
from benchmarks.peers import served
from benchmarks.peers.__main__ import main
from benchmarks.peers.child import PeerError
from benchmarks.peers.contestants import CONTESTANTS, choose
from benchmarks.peers.model_size import ModelSize
from tests.support.checkpoints import small_config, write_checkpoint

from twinflow.protos.errors import ConfigError


def test_an_unknown_arm_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--arms nobody: unknown; there are twinflow"):
        choose(["nobody"])
    assert main(["race", "model", "--arms", "nobody"]) == 2
    assert main(["serve", "model", "--arms", "nobody"]) == 2
    assert capsys.readouterr().err.count("nobody: unknown") == 2


def test_who_is_not_installed_says_how_to_change_that(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"python -m benchmarks\.peers setup vllm"):
        CONTESTANTS["vllm"].python(tmp_path)
    with pytest.raises(ConfigError, match=r"python -m benchmarks\.peers setup llama"):
        CONTESTANTS["llama-bf16"].model(tmp_path, tmp_path)
    assert CONTESTANTS["transformers"].model(tmp_path / "model", tmp_path) == tmp_path / "model"


def test_a_server_that_ends_is_named_with_its_last_words(tmp_path: Path) -> None:
    values = {"home": str(tmp_path), "port": "1", "spare": "2", "cores": "0"}
    with pytest.raises(FileNotFoundError, match="not installed"):
        served.start(served.SERVERS["vllm"], tmp_path, values, tmp_path, 5.0)
    broken = served.Server("broken", ("/bin/sh", "-c", "echo no model; exit 3"), ())
    with pytest.raises(PeerError, match=r"broken: ended before it was ready.*no model"):
        served.start(broken, tmp_path, values, tmp_path, 30.0)


def test_matrices_are_counted_once_with_tied_embeddings(tmp_path: Path) -> None:
    tied, apart = (
        ModelSize.of(
            write_checkpoint(tmp_path / str(is_tied), small_config(tie_word_embeddings=is_tied))
        )
        for is_tied in (True, False)
    )
    assert tied == apart
    assert tied.layers > 0 and tied.head > 0
