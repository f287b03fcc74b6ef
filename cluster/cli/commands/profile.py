"""`twinflow profile`: measures how long steps of a model take here, and keeps what it learnt.

Measuring and fitting are twinflow.runtime.cost; the file lies beside the model, where
`twinflow simulate` and schedulers that predict find it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from twinflow.cluster.cli.files import check_file, check_picture
from twinflow.cluster.cli.flags import flag_name
from twinflow.cluster.cli.parser import Commands, Invocation
from twinflow.cluster.cli.sources import report
from twinflow.cluster.quantities import count, memory
from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.contention import PUBLISHED
from twinflow.runtime.cost.fit import Accuracy, Measurement, fit_model
from twinflow.runtime.cost.pair_fit import Paired, fit_pairs
from twinflow.runtime.cost.profile import Profile, ProfileKey, profile_path, save_profile
from twinflow.runtime.cost.shape import ModelShape

DEFAULT_SECONDS = 10.0

EPILOG = """\
The machine should do nothing else meanwhile: what is measured is what is predicted.

examples:
  twinflow profile ./smollm2-135m
  twinflow profile ./smollm2-135m --threads 4 --seconds 30 --output profile.json
  twinflow profile ./smollm2-135m --tensor-parallel-size 3    for serve --tensor-parallel-size 3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """What is measured.

    Attributes:
        model: directory of the model.
        device: `cpu` or `cuda`.
        dtype: as for `twinflow serve`.
        ranks: that compute the model together.
        threads: with which each of them computes on a CPU; 0 elsewhere.
        seconds: to go on measuring.
        limits: of the engine, by name: rows of a step, sequences, their length, bytes of KV.
    """

    model: Path
    device: str
    dtype: str
    ranks: int
    threads: int
    seconds: float
    limits: dict[str, int]


@dataclass(frozen=True, slots=True)
class Steps:
    """What came of it.

    Attributes:
        key: what it holds for.
        shape: of the model.
        fitting: steps to fit to.
        checking: others.
        pairs: steps on two lanes; None if there were none.
        obstacle: the reason.
    """

    key: ProfileKey
    shape: ModelShape
    fitting: list[Measurement]
    checking: list[Measurement]
    pairs: Paired | None = None
    obstacle: str = ""


Measure = Callable[[ProfileOptions, Callable[[float], None]], Steps]


def add_to(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "profile",
        help="measure a model's step times and fit the cost model to them",
        description="Run steps of many kinds, fit a cost model to them, check it on others, and "
        "write it beside the model.",
        epilog=EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="directory of the model")
    parser.add_argument("--device", metavar="{cpu,cuda}", help="where to compute [default: cpu]")
    parser.add_argument("--dtype", metavar="NAME", help="as for serve [default: auto]")
    parser.add_argument(
        "--tensor-parallel-size",
        metavar="N",
        help="ranks that compute the model together, as for serve: their profile is one of its own "
        "[default: 1]",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        help="of each rank on a CPU; of a single one half of them, a quarter and so on are "
        "measured as well [default: all cores, shared by the ranks]",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        help=f"to measure [default: {DEFAULT_SECONDS:g}]; every step is "
        "run three times in any case",
    )
    parser.add_argument("--max-num-batched-tokens", metavar="N", help="as for serve")
    parser.add_argument("--max-num-seqs", metavar="N", help="as for serve")
    parser.add_argument("--max-model-len", metavar="N", help="as for serve")
    parser.add_argument("--kv-cache-memory", metavar="SIZE", help="as for serve")
    parser.add_argument("--output", metavar="FILE", help="[default: a name beside the model]")
    parser.add_argument("--plot", metavar="FILE", help="[default: beside the profile, as .png]")
    parser.runs(run)


def measure_steps(options: ProfileOptions, progress: Callable[[float], None]) -> Steps:
    """Load the model and run it."""
    # Loaded here because it needs torch, which few commands do.
    from twinflow.runtime.cost.device_name import device_name  # noqa: PLC0415
    from twinflow.runtime.cost.measure import measure  # noqa: PLC0415
    from twinflow.runtime.engine_plan import EngineOptions  # noqa: PLC0415
    from twinflow.workers.ranks.profiling import measure_ranks  # noqa: PLC0415

    engine = EngineOptions(
        model=options.model,
        device=options.device,
        dtype=options.dtype,
        enable_prefix_caching=False,
        **options.limits,  # type: ignore[arg-type]  # by name, all of them int
    )
    several = partial(measure_ranks, ranks=options.ranks)
    measured = (several if options.ranks > 1 else measure)(
        engine, threads=options.threads, seconds=options.seconds, progress=progress
    )
    key = ProfileKey(
        model=measured.fingerprint,
        device=device_name(options.device),
        dtype=measured.dtype,
        threads=options.threads,
        ranks=options.ranks,
    )
    return Steps(
        key,
        measured.shape,
        list(measured.fitting),
        list(measured.checking),
        measured.pairs,
        measured.obstacle,
    )


def run(invocation: Invocation, measure: Measure = measure_steps) -> int:
    """Measure, fit, check, write.

    Raises:
        ConfigError: an argument is wrong, or there is no room for the file.
        CheckpointError: the model cannot be served.
    """
    options = _options(invocation)
    output = invocation.given.get("output")
    _check_places(invocation, options.model)
    with tqdm(total=100, desc="measuring", file=invocation.stdout, disable=None) as bar:

        def show(part: float) -> None:
            bar.update(round(100 * part) - bar.n)

        steps = measure(options, show)
    if not steps.checking:
        raise ConfigError("the limits leave no room for steps to check the fit with: raise them")
    times, lanes = fit_model(steps.shape, steps.fitting), None
    if steps.pairs is not None and times.curves is not None:
        times, lanes = fit_pairs(times, steps.pairs)
    profile = Profile(
        key=steps.key,
        times=times,
        held_out=Accuracy.of(times, steps.checking),
        fitted=Accuracy.of(times, steps.fitting),
        lanes=lanes,
    )
    path = profile_path(options.model, steps.key) if output is None else Path(str(output))
    save_profile(profile, path)
    lines = [
        f"profile    {path}",
        f"device     {steps.key.device}, {steps.key.dtype}, {steps.key.threads} threads, "
        f"{steps.key.ranks} ranks",
        _accuracy("fitted to", profile.fitted),
        _accuracy("held out", profile.held_out),
        *_lanes(profile, steps.obstacle),
        _draw(invocation, profile, steps, path),
    ]
    invocation.stdout.write("\n".join(lines) + "\n")
    return 0


def _check_places(invocation: Invocation, model: Path) -> None:
    """Refuse what cannot be written before anything is measured."""
    if not model.is_dir():
        raise ConfigError(f"{model}: no such directory")
    if "output" in invocation.given:
        check_file("--output", Path(invocation.text("output", "")))
    elif not os.access(model, os.W_OK):
        raise ConfigError(f"{model}: cannot be written to; name another place with --output")
    if "plot" in invocation.given:
        check_picture("--plot", Path(invocation.text("plot", "")))


def _options(invocation: Invocation) -> ProfileOptions:
    complaints = list(invocation.complaints)
    device = invocation.text("device", "cpu")
    limits: dict[str, int] = {}
    for name, read in (
        ("max_num_batched_tokens", count),
        ("max_num_seqs", count),
        ("max_model_len", count),
        ("kv_cache_memory", memory),
    ):
        if name in invocation.given:
            limits[name] = int(_number(invocation, name, read, complaints))
    ranks = int(_number(invocation, "tensor_parallel_size", int, complaints, 1))
    cores = max(1, (os.cpu_count() or 1) // max(1, ranks))
    threads = int(_number(invocation, "threads", int, complaints, cores))
    seconds = _number(invocation, "seconds", float, complaints, DEFAULT_SECONDS)
    if complaints:
        raise ConfigError(report(complaints))
    return ProfileOptions(
        model=Path(invocation.text("model", "")),
        device=device,
        dtype=invocation.text("dtype", "auto"),
        ranks=ranks,
        threads=threads if device == "cpu" else 0,
        seconds=seconds,
        limits=limits,
    )


def _number(
    invocation: Invocation,
    name: str,
    read: Callable[[str], float],
    complaints: list[str],
    default: float = 1,
) -> float:
    """A number above 0; complains otherwise."""
    text = invocation.text(name, str(default))
    try:
        value = read(text)
    except ValueError:
        value = 0
    if not value > 0:
        example = ", such as 2048 or 32k" if read is count else ""
        complaints.append(f"{flag_name(name)} {text!r}: must be a number above 0{example}")
    return value


def _accuracy(name: str, accuracy: Accuracy) -> str:
    return (
        f"{name:<10} {accuracy.steps} steps, error {accuracy.median:.1%} in the median, "
        f"{accuracy.p95:.1%} at p95, {accuracy.worst:.1%} at most"
    )


def _lanes(profile: Profile, obstacle: str) -> list[str]:
    """What two lanes cost each other, or why nobody knows."""
    contention, lanes = profile.times.contention, profile.lanes
    if contention is None or lanes is None:
        return [
            f"lanes      not measured: {obstacle}; they are taken to slow traffic down by "
            f"{PUBLISHED.memory:.0%} at most, as published for an H100"
        ]
    return [
        f"lanes      {lanes.backend}: a step beside another one is slower by "
        f"{contention.memory:.0%} at most where it waits for memory, by {contention.compute:.0%} "
        "elsewhere",
        _accuracy("  fitted", lanes.fitted),
        _accuracy("  held out", lanes.held_out),
    ]


def _draw(invocation: Invocation, profile: Profile, steps: Steps, path: Path) -> str:
    """Draw the fit; says where, or why not."""
    picture = Path(invocation.text("plot", str(path.with_suffix(".png"))))
    try:
        # Loaded here because it needs matplotlib, which serving does not.
        from twinflow.runtime.cost.plot import draw_fit  # noqa: PLC0415
    except ImportError:
        return "plot       none: pip install matplotlib"
    draw_fit(profile.times, steps.fitting, steps.checking, picture)
    return f"plot       {picture}"
