"""Makes the tables of docs/benchmarks.md again: `python -m benchmarks.run [TABLE ...]`.

Runs the commands that the page shows, one after the other, each with a folder of its own for what
it writes. Takes hours on a machine with little to do, and says little on a busy one; changes no
document: figures and what is said about them are put there by hand.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

# What stands in the page behind `python -m benchmarks.`, but for the folder. {model} is the
# directory of SmolLM2-135M-Instruct, {traces} that of published traces.
TABLES = {
    "race": (
        "peers race {model} --cores 0 1 --rounds 5 --batches 1 16 64 --prompts 128 512 1024"
        " --tokens 16 --arms twinflow vllm vllm-float32 llama-q4_1 llama-bf16 transformers"
    ),
    "served": (
        "peers serve {model} --cores 0 1 --rate 1.2 8 --requests 40 --repeats 5"
        " --arms twinflow-mixed twinflow-1p1d vllm-float32 --slo ttft:1000 tpot:100"
    ),
    "latent": "latent --heads 2 16 --rounds 9",
    "rank-steps": "rank_steps --rounds 15",
    "layered": "layered --subjects even skewed --requests 40 --rounds 1",
    "admission-sharegpt": ("admission {traces}/sharegpt_8k_lengths.csv --rates 4 5 --requests 600"),
    "admission-azure": (
        "admission {traces}/azure2023_conv.csv --rates 12 16 --requests 600 --kv-gib 4"
    ),
    "overload": "overload {model} --seconds 15",
    "lanes": "lanes simulated --requests 1000 --loads 0.7 0.9 --seeds 3",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns how many commands failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--model", type=Path, default=Path(".models/smollm2-135m"))
    parser.add_argument("--traces", type=Path, default=Path("traces"))
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--list", action="store_true", help="print the commands, run none")
    args = parser.parse_args(argv)
    unknown = [name for name in args.tables if name not in TABLES]
    if unknown:
        parser.error(f"{unknown[0]}: unknown; there are {', '.join(TABLES)}")
    failed = 0
    for name in args.tables or TABLES:
        command = command_of(name, args.model, args.traces, args.out)
        sys.stderr.write(f"$ {shlex.join(('python', *command))}\n")
        if not args.list:
            failed += subprocess.run([sys.executable, *command], cwd=CHECKOUT).returncode != 0
    return failed


def command_of(name: str, model: Path, traces: Path, out: Path) -> list[str]:
    """What Python is given to make a table."""
    module, *flags = TABLES[name].format(model=model, traces=traces).split()
    return ["-m", f"benchmarks.{module}", *flags, "--out", str(out / name)]


if __name__ == "__main__":
    sys.exit(main())
