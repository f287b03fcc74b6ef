"""Flags to configuration, and errors that name the flag."""

from pathlib import Path

import pytest
from benchmarks.load.cli import build_parser, parse
from benchmarks.load.prompts import Api
from benchmarks.load.runs import Arm
from benchmarks.load.slo import Objective

from twinflow.cluster.simulator.arrivals import Process

URL = ("--url", "http://127.0.0.1:8000")

EVERY_FLAG = """
    --arm a=http://h:1 --arm b=http://h:2 --model m --endpoint chat --api-key-file k
    --timeout 9 --temperature 0.5 --rate 1 2 --arrivals gamma --cv 3 --requests 7 --repeats 5
    --warmup 0 --seed 4 --input-tokens uniform:1:9 --output-tokens lognormal:3:1 --trace t
    --length-scale 0.5 --time-scale 2 --max-input-tokens 100 --max-output-tokens 50
    --prefixes 2 --prefix-tokens 64 --token-range 5:50 --no-ignore-eos --return-token-ids
    --disconnect-share 0.1 --bad-share 0.05 --slo ttft:500 gap:900 --server-pid 3 4 --out o
"""


def test_a_small_command() -> None:
    config = parse([*URL, "--rate", "2"])
    assert config is not None
    assert config.arms == (Arm("server", "http://127.0.0.1:8000"),)
    assert (config.rates, config.workload.requests, config.model) == ((2.0,), 500, None)


def test_every_flag_arrives() -> None:
    config = parse(EVERY_FLAG.split())
    assert config is not None
    assert config.arms == (Arm("a", "http://h:1"), Arm("b", "http://h:2"))
    assert (config.model, config.api, config.api_key_file) == ("m", Api.CHAT, Path("k"))
    assert (config.timeout_s, config.temperature, config.rates) == (9.0, 0.5, (1.0, 2.0))
    assert (config.process, config.cv, config.repeats) == (Process.GAMMA, 3.0, 5)
    assert (config.warmup, config.seed, config.token_range) == (0, 4, (5, 50))
    assert (config.ignore_eos, config.return_token_ids) == (False, True)
    assert config.objectives == (Objective("ttft", 500.0), Objective("gap", 900.0))
    assert (config.server_pids, config.out) == ((3, 4), Path("o"))
    workload = config.workload
    assert (workload.requests, str(workload.input_tokens)) == (7, "uniform:1:9")
    assert (str(workload.output_tokens), workload.trace) == ("lognormal:3:1", Path("t"))
    assert (workload.length_scale, workload.time_scale) == (0.5, 2.0)
    assert (workload.max_input_tokens, workload.max_output_tokens) == (100, 50)
    assert (workload.prefixes, workload.prefix_tokens) == (2, 64)
    assert (workload.disconnect_share, workload.bad_share) == (0.1, 0.05)


def test_a_trace_sets_the_times_without_a_rate() -> None:
    config = parse([*URL, "--trace", "t.jsonl"])
    assert config is not None
    assert config.rates == (None,)


def test_calibration_needs_nothing_else() -> None:
    assert parse(["--calibrate"]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "2"], "one of --url, --arm and --calibrate"),
        ([*URL, "--arm", "a=http://h:1", "--rate", "2"], "one of --url, --arm and --calibrate"),
        ([*URL], "--rate is needed"),
        ([*URL, "--rate", "0"], "--rate must be above 0"),
        ([*URL, "--rate", "2", "--cv", "3"], "--cv has an effect only with --arrivals gamma"),
        (["--arm", "a", "--rate", "2"], "--arm: 'a' must look like NAME=http://host:port"),
        (["--url", "h:1", "--rate", "2"], "--url: URL 'h:1' must look like"),
        (["--arm", "a=http://h", "--arm", "a=http://i", "--rate", "2"], "names must differ"),
        ([*URL, "--rate", "2", "--input-tokens", "zipf:1"], "--input-tokens: length distribution"),
        ([*URL, "--rate", "2", "--slo", "p99:1"], "the measures are ttft, tpot, e2e, gap"),
        ([*URL, "--rate", "2", "--token-range", "9"], "--token-range: '9' must look like"),
        ([*URL, "--rate", "2", "--token-range", "9:3"], "--token-range needs 0 <= LOW < HIGH"),
        ([*URL, "--rate", "2", "--timeout", "0"], "--timeout must be above 0"),
        ([*URL, "--rate", "2", "--repeats", "0"], "--repeats must be at least 1"),
        ([*URL, "--rate", "2", "--max-input-tokens", "0"], "--max-input-tokens must be at least 1"),
        ([*URL, "--rate", "2", "--requests", "0"], "--requests must be at least 1"),
        ([*URL, "--rat", "2"], "unrecognized arguments: --rat"),
    ],
)
def test_unusable_flags_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help_explains_every_flag() -> None:
    missing = [action.dest for action in build_parser()._actions if not action.help]
    assert missing == []
