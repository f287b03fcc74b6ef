"""Flags, environment, file and defaults: who wins, and what is reported when they are wrong."""

from pathlib import Path

import pytest

from twinflow.cluster.cli.sources import resolve
from twinflow.cluster.config import ServeConfig
from twinflow.protos.errors import ConfigError

_EASYSPEC = '{"method": "easyspec", "model": "small", "layer_parallel": %s}'


def configure(
    flags: dict[str, object] | None = None, environ: dict[str, str] | None = None
) -> ServeConfig:
    return resolve({"model": "small", **(flags or {})}, environ or {}, [])


def refused(
    flags: dict[str, object] | None = None, environ: dict[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        configure(flags, environ)
    return raised.value.message.splitlines()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "serve.yaml"


def test_flag_over_environment_over_file_over_default(file: Path) -> None:
    file.write_text("port: 1\ngrpc-port: 2\nhost: localhost\n")
    config = configure(
        {"config": str(file), "port": "3"}, {"TWINFLOW_PORT": "4", "TWINFLOW_GRPC_PORT": "5"}
    )
    assert (config.port, config.grpc_port, config.host) == (3, 5, "localhost")
    assert config.dtype == "auto"


def test_the_environment_may_name_the_file(file: Path) -> None:
    file.write_text("dtype: float32")
    assert configure({}, {"TWINFLOW_CONFIG": str(file)}).dtype == "float32"


def test_other_peoples_variables_are_ignored() -> None:
    assert configure({}, {"PORT": "1", "VLLM_PORT": "2"}).port == 8000


def test_keys_from_the_environment_are_separated_by_commas() -> None:
    assert configure({}, {"TWINFLOW_API_KEY": "one, two"}).api_keys == ("one", "two")


def test_mixed_in_the_file_replaces_the_pools_too(file: Path) -> None:
    file.write_text("mixed: 2")
    config = configure({"config": str(file)})
    assert (config.prefill, config.decode, config.mixed) == (0, 0, 2)


def test_unknown_variables_are_named_with_the_nearest() -> None:
    assert refused({}, {"TWINFLOW_PROT": "1"}) == [
        "TWINFLOW_PROT: unknown environment variable; did you mean TWINFLOW_PORT?"
    ]


def test_complaints_name_the_place_of_the_value(file: Path) -> None:
    file.write_text("block-size: 24")
    lines = refused(
        {"config": str(file), "max_model_len": "3q"}, {"TWINFLOW_PORT": "x", "TWINFLOW_ZZ": ""}
    )
    assert lines == [
        "4 settings are wrong:",
        "  TWINFLOW_ZZ: unknown environment variable",
        "  --max-model-len '3q': must be a whole number such as 2048, 32k or 32K",
        "  TWINFLOW_PORT 'x': must be a whole number",
        f"  {file}: block-size 24: must be a power of two",
    ]


def test_a_default_at_fault_says_that_it_is_one() -> None:
    assert refused({"port": "50051"})[0].startswith("--grpc-port (its default):")


@pytest.mark.parametrize(
    ("flags", "origin"),
    [
        ({"decode": "0"}, "--decode '0'"),
        ({"prefill": "0"}, "--prefill '0'"),
        ({"prefill": "0", "decode": "0", "mixed": "0"}, "--decode '0'"),
    ],
)
def test_an_empty_pool_is_the_fault_of_its_setting(flags: dict[str, object], origin: str) -> None:
    (line,) = refused(flags)
    assert line.startswith(f"{origin}: ") and "cannot serve without a mixed one" in line


def test_speculation_is_json_with_the_names_of_vllm(file: Path) -> None:
    text = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}'
    config = configure({"speculative_config": text}).speculative_config
    assert config is not None
    assert (config.method, config.num_speculative_tokens) == ("ngram", 3)
    file.write_text("model: m\nspeculative-config: {method: suffix}\n")
    config = configure({"config": str(file)}).speculative_config
    assert config is not None
    assert config.method == "suffix"
    text = '{"model": "small", "num_speculative_tokens": 3}'
    config = configure({"speculative_config": text}).speculative_config
    assert config is not None
    assert (config.method, config.model) == ("draft_model", "small")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ngram", "is no JSON"),
        ("[]", "must be a JSON object"),
        ('{"num_speculative_tokens": 3}', "'method' is missing"),
        ('{"method": "ngram", "promt_lookup_max": 3}', "did you mean prompt_lookup_max?"),
        ('{"method": "suffix", "prompt_lookup_max": 3}', "of method ngram, and the method is"),
        ('{"method": "draft_model"}', "needs 'model'"),
        ('{"method": "ngram", "model": "small"}', "'model' is of method draft_model and easyspec"),
        ('{"method": "ngram", "layer_parallel": {}}', "'layer_parallel' is of method easyspec"),
        ('{"method": "easyspec"}', "needs 'model'"),
        (_EASYSPEC % '{"sizes": 3}', "layer_parallel.sizes is unknown; did you mean size?"),
        (_EASYSPEC % '{"size": 0}', "layer_parallel.size must be auto or in 1..16"),
        (_EASYSPEC % '{"size": "auto", "plan": "measured"}', "layer_parallel.plan measured needs"),
        (_EASYSPEC % '{"layout": "ring"}', "layer_parallel.layout"),
        (_EASYSPEC % '{"first": -1}', "layer_parallel.first must be at least 0"),
        (_EASYSPEC % '{"calibrate": false}, "tree": {}', "layer_parallel.calibrate false is for"),
        (_EASYSPEC % "4", "layer_parallel must be a JSON object"),
        (
            _EASYSPEC % '{"layout": "single"}, "draft_tensor_parallel_size": 2',
            "leave one of them out",
        ),
        (
            _EASYSPEC % '{"layout": "owner"}, "draft_tensor_parallel_size": 1',
            "draft_tensor_parallel_size is 1, and layer_parallel.layout owner drafts on several",
        ),
        (_EASYSPEC % '{}, "draft_tensor_parallel_size": 0', "draft_tensor_parallel_size must be"),
        ('{"method": "eagle"}', "'eagle' is unknown; choose one of"),
        ('{"method": "ngram", "rejection_sample_method": "block"}', "is vLLM's and not supported"),
        ('{"model": "small", "max_model_len": 9}', "use --max-model-len"),
        ('{"method": "ngram", "num_speculative_tokens_per_batch_size": []}', "use 'adaptive'"),
        ('{"model": "small", "layer_parallel": {}}', "and the method is draft_model"),
        (
            '{"method": "ngram", "adaptive": false, "adaptive_decisions": "there"}',
            "adaptive_decisions has nothing to write where adaptive is false",
        ),
        ('{"method": "suffix", "suffix_decoding_max_spec_factor": 1e308}', "at most 64"),
        ('{"method": "token_recycling", "tree": {"width": 9}}', "remembers 8 tokens behind each"),
        ('{"method": "ngram", "num_speculative_tokens": 0}', "must be in 1..64, not 0"),
        ('{"method": "ngram", "num_speculative_tokens": true}', "Expected `int`, got `bool`"),
        ('{"method": "ngram", "prompt_lookup_min": 6, "prompt_lookup_max": 3}', "at most"),
    ],
)
def test_wrong_speculation_is_named(text: str, reason: str) -> None:
    (complaint,) = refused({"speculative_config": text})
    assert complaint.startswith("--speculative-config ")
    assert reason in complaint


def test_a_step_has_rows_for_everything_that_may_be_proposed() -> None:
    (complaint,) = refused(
        {"speculative_config": '{"method": "ngram"}', "max_num_batched_tokens": "300"}
    )
    assert "must be at least --max-num-seqs (64) times 1 + num_speculative_tokens (5)" in complaint


def test_a_missing_model_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"^MODEL: missing"):
        resolve({}, {}, [])


def test_no_key_is_ever_shown(file: Path) -> None:
    file.write_text("api-key: 123456")
    for lines in (
        refused({"api_key": ["pass word"]}),
        refused({}, {"TWINFLOW_API_KEY": "pass word"}),
        refused({"config": str(file)}),
    ):
        assert "pass word" not in "".join(lines) and "123456" not in "".join(lines)
        assert "key" in lines[0].lower()


def test_long_and_strange_values_are_shown_short_and_escaped() -> None:
    (line,) = refused({"port": "\x1b[31m" + "9" * 500})
    assert "\x1b" not in line and len(line) < 150
