"""`twinflow calibrate tpla`: fits and measures what tensor-parallel latent attention needs.

The work itself is twinflow.runtime.calibration.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Never, TextIO, get_args

from tqdm import tqdm

from twinflow.cluster.cli.parser import Commands, Invocation
from twinflow.cluster.cli.sources import report
from twinflow.protos.errors import ConfigError
from twinflow.runtime.calibration.options import CalibrationOptions
from twinflow.runtime.calibration.plot import NO_MATPLOTLIB, PICTURE, can_draw, draw_report
from twinflow.runtime.calibration.report import QualityReport

Dtype = Literal["auto", "float32", "bfloat16"]

DESCRIPTION = """\
Measure what --mla-parallel tpla costs on a model, and prepare it.

With tpla each rank of a decode worker caches a slice of every latent and attends to it alone. That
is an approximation, whose error depends on the basis in which latents are sliced. This command runs
MODEL over FILE, makes such bases (transforms) from one half of it, and measures decode steps on the
other half: how much less likely its tokens become, and how often the most likely token changes.
`twinflow serve --mla-parallel tpla` refuses a model that has not been measured.
A further run adds to the report of the first.
"""

EPILOG = """\
transforms:
  none        columns as the model has them
  hadamard    all columns mixed
  pca         principal components of the latents
  joint       principal components of what queries and values read of the latents
  scores      the same, with most weight on queries
  scores+64   the first 64 columns kept by every rank: less error, more memory; so for any of them
  joint-exact2
              the two layers that lose most made exact by an exchange of scores: less error, the
              same memory, more traffic; so for any of them, also as scores+64-exact2

examples:
  twinflow calibrate tpla ./deepseek-v2-lite --text book.txt
  twinflow calibrate tpla ./deepseek-v2-lite --text book.txt --shards 2 --transform joint scores+64
"""

# Told a phase, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]
Calibrate = Callable[[CalibrationOptions, Progress], QualityReport]


def add_to(commands: Commands) -> None:
    """Describe the command and its one verb."""
    calibrate = commands.add_parser("calibrate", help="measure and prepare approximations")
    verbs = calibrate.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = verbs.add_parser(
        "tpla",
        help="tensor-parallel latent attention",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    defaults = CalibrationOptions(model=Path(), text=Path())
    parser.add_argument("model", metavar="MODEL", help="directory of the model")
    parser.add_argument("--text", metavar="FILE", required=True, help="UTF-8 text")
    parser.add_argument(
        "--shards",
        metavar="N,N",
        help="numbers of ranks that share latents [default: 2,4]",
    )
    parser.add_argument(
        "--transform",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="transforms to measure [default: all, joint also with one exact layer, scores with "
        "an eighth and a quarter of the columns kept by every rank]",
    )
    parser.add_argument(
        "--tokens",
        metavar="N",
        help=f"tokens of the text to use, at most [default: {defaults.tokens}]",
    )
    parser.add_argument(
        "--window",
        metavar="N",
        help=f"tokens of context, the first half of them a prompt [default: {defaults.window}]",
    )
    parser.add_argument("--out", metavar="DIR", help="where to write [default: MODEL/tpla]")
    parser.add_argument(
        "--dtype",
        metavar="{" + ",".join(get_args(Dtype)) + "}",
        help=f"number format to compute in [default: {defaults.dtype}]",
    )
    parser.add_argument(
        "--device", metavar="{cpu,cuda}", help=f"where to compute [default: {defaults.device}]"
    )
    parser.runs(run)


def calibrate_tpla(options: CalibrationOptions, progress: Progress) -> QualityReport:
    """Calibrate a model."""
    # Loaded here because it needs torch, which the command line does not.
    from twinflow.runtime.calibration import tpla  # noqa: PLC0415

    return tpla.calibrate_tpla(options, progress)


def run(invocation: Invocation, calibrate: Calibrate = calibrate_tpla) -> int:
    """Calibrate one model, showing how far it is, and print what was measured.

    Raises:
        ConfigError: an argument is wrong; nothing was computed.
        CheckpointError: the model cannot be served; nothing was computed.
    """
    options = _options(invocation)
    with _PhaseBar(invocation.stdout) as bar:
        found = calibrate(options, bar.show)
    invocation.stdout.write(f"\n{found.table()}\n")
    if can_draw():
        draw_report(found, options.folder / PICTURE)
    else:
        invocation.stdout.write(f"{NO_MATPLOTLIB}\n")
    invocation.stdout.write(f"{options.folder} holds the transforms and this report.\n")
    return 0


def _options(invocation: Invocation) -> CalibrationOptions:
    complaints = list(invocation.complaints)
    defaults = CalibrationOptions(
        model=Path(invocation.text("model", "")), text=Path(invocation.text("text", ""))
    )
    dtype = invocation.text("dtype", defaults.dtype)
    if dtype not in get_args(Dtype):
        complaints.append(f"--dtype {dtype!r}: must be one of {', '.join(get_args(Dtype))}")
    shards = invocation.text("shards", ",".join(map(str, defaults.shards))).split(",")
    counts = [_number("shards", text, 1, complaints) for text in shards]
    transforms = invocation.given.get("transform", ())
    options = CalibrationOptions(
        model=defaults.model,
        text=defaults.text,
        out=Path(out) if (out := invocation.text("out", "")) else None,
        shards=tuple(dict.fromkeys(counts)),
        transforms=tuple(map(str, transforms)) if isinstance(transforms, list) else (),
        tokens=_number("tokens", invocation.text("tokens", str(defaults.tokens)), 1, complaints),
        window=_number("window", invocation.text("window", str(defaults.window)), 4, complaints),
        dtype=dtype,
        device=invocation.text("device", defaults.device),
    )
    if complaints:
        raise ConfigError(report(complaints))
    return options


def _number(name: str, text: str, least: int, complaints: list[str]) -> int:
    if text.isascii() and text.isdecimal() and int(text) >= least:
        return int(text)
    complaints.append(f"--{name} {text!r}: must be a whole number, at least {least}")
    return least


class _PhaseBar:
    """A line or, on a terminal, a progress bar for each phase."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase = ""
        self._bar: tqdm[Never] | None = None

    def __enter__(self) -> "_PhaseBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def show(self, phase: str, done: int, total: int) -> None:
        """So much of a phase is done."""
        if phase != self._phase:
            self._close()
            self._phase = phase
            if self._stream.isatty():
                self._bar = tqdm(desc=phase, total=total, file=self._stream, unit_scale=True)
            else:
                self._stream.write(f"{phase}\n")
                self._stream.flush()
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
