"""Trains the nano models: `python -m benchmarks.train_nano --help`.

Steps, in this order: `data` collects text, `tokenizer` learns a vocabulary and encodes the text,
`train` trains one model and continues where it was stopped, `export` writes it as a Hugging Face
directory with its model card, `sample` continues prompts from such a directory. The steps find in
--work what those before them left there.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.load.machine import machine_facts
from benchmarks.train_nano import corpus, vocabulary
from benchmarks.train_nano.publish import SPLITS, Run, held_out_text, publish
from benchmarks.train_nano.recipes import RECIPES, TARGET, VOCABULARY, fresh
from benchmarks.train_nano.sampling import PROMPTS, Sampler
from benchmarks.train_nano.schedule import Schedule
from benchmarks.train_nano.training import Trainer

MODELS = Path(__file__).resolve().parents[2] / "tests" / "models"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(given)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    match arguments.step:
        case "data":
            _data(arguments.work)
        case "tokenizer":
            _tokenizer(arguments.work, arguments.seed)
        case "train":
            _train(arguments, f"python -m benchmarks.train_nano {shlex.join(given)}")
        case "export":
            publish(arguments.work, arguments.model, arguments.models / arguments.model)
        case "sample":
            _sample(arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_nano", description=__doc__)
    parser.add_argument("step", choices=("data", "tokenizer", "train", "export", "sample"))
    parser.add_argument("--work", type=Path, default=Path(".models/train-nano"), metavar="DIR")
    parser.add_argument("--models", type=Path, default=MODELS, metavar="DIR", help="exported ones")
    parser.add_argument("--model", choices=sorted(RECIPES), default=TARGET)
    parser.add_argument("--tokens", type=int, help="to train on; by default the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="by default torch decides")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompt", action="append", help="of `sample`, any number of times")
    parser.add_argument("--length", type=int, default=120, help="tokens that `sample` adds")
    return parser


def _data(work: Path) -> None:
    found = list(corpus.documents(corpus.standard_library()))
    for split in SPLITS:
        chosen = [d for d in found if corpus.is_held_out(d.path) == (split == "held-out")]
        corpus.write_documents(work / f"{split}.jsonl", chosen)
        _say(f"{split}: {len(chosen)} files, {sum(len(d.text.encode()) for d in chosen):,} bytes")


def _tokenizer(work: Path, seed: int) -> None:
    texts = {split: list(corpus.read_documents(work / f"{split}.jsonl")) for split in SPLITS}
    tokenizer = vocabulary.train_tokenizer(texts["train"], VOCABULARY)
    tokenizer.save(str(work / "tokenizer.json"))
    for split in SPLITS:
        ids = vocabulary.encode(tokenizer, texts[split], seed)
        vocabulary.write_ids(work / f"{split}.safetensors", ids)
        _say(f"{split}: {len(ids):,} tokens")


def _train(arguments: argparse.Namespace, command: str) -> None:
    work, name, seed = arguments.work, arguments.model, arguments.seed
    schedule = Schedule(tokens=arguments.tokens or RECIPES[name].tokens, seed=seed)
    machine = f"{torch.get_num_threads()} thread(s) of {machine_facts()['cpu']}"
    if arguments.device != "cpu":
        machine = torch.cuda.get_device_name(arguments.device)
    Run(command, seed, schedule.tokens, schedule.batch, machine).write(work / name)
    model = fresh(name, seed).to(arguments.device)
    trainer = Trainer(model, schedule, work / name, sys.stdout)
    trainer.run(vocabulary.read_ids(work / "train.safetensors"), held_out_text(work))


def _sample(arguments: argparse.Namespace) -> None:
    sampler = Sampler(arguments.models / arguments.model)
    for prompt in arguments.prompt or PROMPTS:
        for seed in (None, arguments.seed):
            continuation = sampler(prompt, arguments.length, seed)
            _say(f"--- {'greedy' if continuation.greedy else f'seed {seed}'}")
            _say(f"{continuation.prompt}»{continuation.text}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
