"""Config files: YAML or JSON, one mapping, keys that exist, each of them once."""

from pathlib import Path

import pytest

from twinflow.cluster.cli.config_file import MAX_BYTES, read
from twinflow.protos.errors import ConfigError


def write(folder: Path, text: str, name: str = "serve.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml(tmp_path: Path) -> None:
    text = "model: small\nmax-model-len: 32k\nserved_model_name: [a, b]\n"
    assert read(write(tmp_path, text)) == (
        {"model": "small", "max_model_len": "32k", "served_model_name": ["a", "b"]},
        [],
    )


def test_json_may_be_indented_with_tabs(tmp_path: Path) -> None:
    assert read(write(tmp_path, '{\n\t"port": 1\n}', "serve.json")) == ({"port": 1}, [])


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "\ufeffport: 1"])
def test_empty_files_and_byte_order_marks(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path, text))[1] == []


def test_unknown_keys_are_named_with_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "prot: 1\nport: 2\nconfig: other.yaml\n")
    assert read(path) == (
        {"port": 2},
        [
            f"{path}: unknown key 'prot'; did you mean port?",
            f"{path}: unknown key 'config'; did you mean speculative-config?",
        ],
    )


def test_one_setting_under_two_spellings(tmp_path: Path) -> None:
    _, complaints = read(write(tmp_path, "block-size: 8\nblock_size: 16\n"))
    assert len(complaints) == 1 and "twice" in complaints[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "port: 1\nport: 2\n", "the key 'port' stands twice"),
        ("a.json", '{"port": 1, "port": 2}', "the key 'port' stands twice"),
        ("a.yaml", "- port\n", "must be a mapping"),
        ("a.json", "[1]", "must be a mapping"),
        ("a.yaml", "port: [1\n", "line 2"),
        ("a.json", '{"port": 1', "line 1"),
        ("a.yaml", "host: !!python/object/apply:os.system ['true']", "python/object"),
        ("a.yaml", "[" * 20_000, "recursion"),
        ("a.yaml", "#" * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path, text, name)
    with pytest.raises(ConfigError, match=message) as raised:
        read(path)
    assert str(path) in raised.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="directory"):
        read(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="utf-8"):
        read(binary)
