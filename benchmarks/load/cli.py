"""Command line of `python -m benchmarks.serve`: flags to a BenchConfig. Runs nothing."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.load.config import BenchConfig
from benchmarks.load.http1 import Endpoint
from benchmarks.load.prompts import Api, PromptConfig
from benchmarks.load.runs import Arm
from benchmarks.load.slo import Objective
from benchmarks.load.workload import Workload
from twinflow.cluster.simulator.arrivals import Arrivals, Process
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.protos.errors import ConfigError

T = TypeVar("T")

_APIS = {"completions": Api.COMPLETIONS, "chat": Api.CHAT}
_DESCRIPTION = """\
Open-loop load generator for OpenAI-compatible servers. Requests are sent at times drawn before the
run, whether or not earlier ones have returned, and latencies count from those times.

  python -m benchmarks.serve --url http://127.0.0.1:8000 --rate 2 --requests 500 \\
      --slo ttft:500 tpot:50 --out results/first
  python -m benchmarks.serve --arm 1p1d=http://127.0.0.1:8000 --arm mixed=http://127.0.0.1:8001 \\
      --rate 1 2 4 --requests 500 --repeats 5 --out results/compare
  python -m benchmarks.serve --calibrate
"""
_EPILOG = """\
Exit status: 0 done; 1 calibration failed; 2 a flag, the trace or the server is unusable;
3 a run is invalid because the generator could not keep up. Method: docs/benchmarks.md.
"""


def parse(argv: Sequence[str]) -> BenchConfig | None:
    """Read the flags; None means that the calibration is asked for.

    Raises:
        SystemExit: the flags cannot be used, with the reason on standard error, or --help.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.calibrate:
        return None
    try:
        return _config(args)
    except ConfigError as error:
        parser.error(error.message)


def build_parser() -> argparse.ArgumentParser:
    """The parser, its flags grouped by what they describe."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--calibrate", action="store_true", help="measure a stub of known latency")
    _add_target(parser.add_argument_group("servers"))
    _add_load(parser.add_argument_group("arrivals"))
    _add_workload(parser.add_argument_group("workload"))
    _add_faults(parser.add_argument_group("clients that misbehave"))
    _add_report(parser.add_argument_group("report"))
    return parser


def _checked(read: Callable[[str], T]) -> Callable[[str], T]:
    """Let argparse name the flag when a value cannot be read."""

    def convert(text: str) -> T:
        try:
            return read(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return convert


def _arm(text: str) -> Arm:
    name, equals, url = text.partition("=")
    if not (name and equals and url):
        raise ConfigError(f"{text!r} must look like NAME=http://host:port")
    Endpoint.parse(url)
    return Arm(name, url)


def _token_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if not (low.isdecimal() and high.isdecimal()):
        raise ConfigError(f"{text!r} must look like LOW:HIGH")
    return int(low), int(high)


def _url(text: str) -> Arm:
    Endpoint.parse(text)
    return Arm("server", text)


def _add_target(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--url", type=_checked(_url), help="one server, as http://host:port")
    add("--arm", type=_checked(_arm), action="append", default=[], metavar="NAME=URL",
        help="one of several servers; their runs alternate with the same seeds")  # fmt: skip
    add("--model", help="model name (default: the first one that the server lists)")
    add("--endpoint", choices=_APIS, default="completions",
        help="completions sends token ids, chat sends words (default: completions)")  # fmt: skip
    add("--api-key-file", type=Path, metavar="FILE", help="file that holds the bearer token")
    add("--timeout", type=float, default=600.0, metavar="S", help="deadline of a request")
    add("--temperature", type=float, default=0.0, help="sampling temperature (default: 0)")


def _add_load(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--rate", type=float, nargs="+", metavar="R",
        help="requests per second, one run each; without it a trace sets the times")  # fmt: skip
    add("--arrivals", choices=[str(each) for each in Process], default="poisson",
        help="gaps between requests (default: poisson)")  # fmt: skip
    add("--cv", type=float, default=1.0, help="coefficient of variation of gamma gaps")
    add("--requests", type=int, default=500, metavar="N", help="requests per run (default: 500)")
    add("--repeats", type=int, default=1, metavar="N", help="runs per server and rate")
    add("--warmup", type=int, default=2, metavar="N", help="unmeasured requests before each run")
    add("--seed", type=int, default=0, help="of arrivals, lengths and prompts (default: 0)")


def _add_workload(group: argparse._ArgumentGroup) -> None:
    lengths = _checked(Lengths.parse)
    add = group.add_argument
    add("--input-tokens", type=lengths, default=Lengths.parse("fixed:128"), metavar="DIST",
        help="fixed:N, uniform:LOW:HIGH or lognormal:MU:SIGMA (default: fixed:128)")  # fmt: skip
    add("--output-tokens", type=lengths, default=Lengths.parse("fixed:32"), metavar="DIST",
        help="likewise (default: fixed:32)")  # fmt: skip
    add("--trace", type=Path, metavar="FILE",
        help="lengths, and times if any: Azure csv, length csv or Mooncake jsonl")  # fmt: skip
    add("--length-scale", type=float, default=1.0, metavar="X", help="factor on all lengths")
    add("--time-scale", type=float, default=1.0, metavar="X", help="factor on a trace's times")
    add("--max-input-tokens", type=int, metavar="N", help="cut longer prompts to N")
    add("--max-output-tokens", type=int, metavar="N", help="cut longer outputs to N")
    add("--prefixes", type=int, default=0, metavar="N", help="number of shared prefixes")
    add("--prefix-tokens", type=int, default=0, metavar="N", help="length of a shared prefix")
    add("--token-range", type=_checked(_token_range), default=(1000, 20000), metavar="LOW:HIGH",
        help="ids of which prompts are made (default: 1000:20000)")  # fmt: skip
    add("--no-ignore-eos", action="store_true",
        help="let outputs end early; token counts are then not checked")  # fmt: skip
    add("--return-token-ids", action="store_true", help="count tokens by their ids")


def _add_faults(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--disconnect-share", type=float, default=0.0, metavar="X",
        help="share of requests whose client hangs up within the output")  # fmt: skip
    add("--bad-share", type=float, default=0.0, metavar="X",
        help="share of requests that the server must refuse with a 4xx")  # fmt: skip


def _add_report(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--slo", type=_checked(Objective.parse), nargs="+", default=[], metavar="MEASURE:MS",
        help="objectives of a good request: ttft, tpot, e2e, gap, as in ttft:500")  # fmt: skip
    add("--server-pid", type=int, nargs="+", default=[], metavar="PID",
        help="roots of the server's process trees, to tell its CPU time from others'")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="write report.json, .md, .png, requests.jsonl")


def _config(args: argparse.Namespace) -> BenchConfig:
    rates = tuple(args.rate) if args.rate else (None,)
    process = Process(args.arrivals)
    for rate in args.rate or ():
        Arrivals(rate, process, args.cv)
    if args.cv != 1 and process is not Process.GAMMA:
        raise ConfigError("--cv has an effect only with --arrivals gamma")
    if args.rate is None and args.trace is None:
        raise ConfigError("--rate is needed, or a --trace with arrival times")
    PromptConfig(model="", token_range=args.token_range)
    _check_bounds(args)
    return BenchConfig(
        arms=_arms(args),
        workload=_workload(args),
        model=args.model,
        api=_APIS[args.endpoint],
        api_key_file=args.api_key_file,
        timeout_s=args.timeout,
        rates=rates,
        process=process,
        cv=args.cv,
        seed=args.seed,
        repeats=args.repeats,
        warmup=args.warmup,
        token_range=args.token_range,
        ignore_eos=not args.no_ignore_eos,
        return_token_ids=args.return_token_ids,
        temperature=args.temperature,
        objectives=tuple(args.slo),
        server_pids=tuple(args.server_pid),
        out=args.out,
    )


def _arms(args: argparse.Namespace) -> tuple[Arm, ...]:
    arms: list[Arm] = [args.url] if args.url else args.arm
    if bool(args.url) == bool(args.arm):
        raise ConfigError("one of --url, --arm and --calibrate is needed")
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        raise ConfigError(f"--arm names must differ: {', '.join(names)}")
    return tuple(arms)


def _check_bounds(args: argparse.Namespace) -> None:
    least = {
        "--repeats": (args.repeats, 1),
        "--warmup": (args.warmup, 0),
        "--seed": (args.seed, 0),
        "--max-input-tokens": (args.max_input_tokens, 1),
        "--max-output-tokens": (args.max_output_tokens, 1),
    }
    for flag, (value, bound) in least.items():
        if value is not None and value < bound:
            raise ConfigError(f"{flag} must be at least {bound}, not {value}")
    if not args.timeout > 0:
        raise ConfigError(f"--timeout must be above 0 seconds, not {args.timeout}")


def _workload(args: argparse.Namespace) -> Workload:
    return Workload(
        requests=args.requests,
        input_tokens=args.input_tokens,
        output_tokens=args.output_tokens,
        trace=args.trace,
        length_scale=args.length_scale,
        time_scale=args.time_scale,
        max_input_tokens=args.max_input_tokens,
        max_output_tokens=args.max_output_tokens,
        prefixes=args.prefixes,
        prefix_tokens=args.prefix_tokens,
        disconnect_share=args.disconnect_share,
        bad_share=args.bad_share,
    )
