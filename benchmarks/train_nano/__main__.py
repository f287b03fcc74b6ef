"""Trains the nano models: `python -m benchmarks.train_nano --help`.

Steps, in this order: `data` collects text, `tokenizer` learns a vocabulary and encodes the text,
`train` trains one model and continues where it was stopped, `export` writes it as a Hugging Face
directory with its model card, `sample` continues prompts from such a directory. The steps find in
--work what those before them left there.
"""

import argparse
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
    arguments = _parser().parse_args(argv)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    match arguments.step:
        case "data":
            _data(arguments.work)
        case "tokenizer":
            _tokenizer(arguments.work, arguments.seed)
        case "train":
            _train(arguments)
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
    parser.add_argument("--machine", help="what the card says that `train` ran on")
    parser.add_argument("--prompt", action="append", help="of `sample`, any number of times")
    parser.add_argument("--length", type=int, default=120, help="tokens that `sample` adds")
    return parser


def _data(work: Path) -> None:
    found = list(corpus.documents(corpus.standard_library()))
    for split in SPLITS:
        chosen = [d for d in found if corpus.is_held_out(d.path) == (split == "held-out")]
        corpus.write_documents(work / f"{split}.jsonl", chosen)
        corpus.write_text(work / f"{split}.txt", chosen)
        _say(f"{split}: {len(chosen)} files, {sum(len(d.text.encode()) for d in chosen):,} bytes")


def _tokenizer(work: Path, seed: int) -> None:
    texts = {split: list(corpus.read_documents(work / f"{split}.jsonl")) for split in SPLITS}
    tokenizer = vocabulary.train_tokenizer(texts["train"], VOCABULARY)
    tokenizer.save(str(work / "tokenizer.json"))
    for split in SPLITS:
        ids = vocabulary.encode(tokenizer, texts[split], seed)
        vocabulary.write_ids(work / f"{split}.safetensors", ids)
        _say(f"{split}: {len(ids):,} tokens")


def _train(arguments: argparse.Namespace) -> None:
    folder = arguments.work / arguments.model
    tokens = arguments.tokens or RECIPES[arguments.model].tokens
    schedule = Schedule(tokens=tokens, seed=arguments.seed)
    run = Run(
        command=f"python -m benchmarks.train_nano train --model {arguments.model}"
        f" --tokens {tokens} --seed {arguments.seed}",
        seed=arguments.seed,
        tokens=tokens,
        batch=schedule.batch,
        machine=arguments.machine or _machine(arguments.device),
    )
    run.write(folder)
    model = fresh(arguments.model, arguments.seed).to(arguments.device)
    trainer = Trainer(model, schedule, folder, sys.stdout)
    trainer.run(
        vocabulary.read_ids(arguments.work / "train.safetensors"), held_out_text(arguments.work)
    )


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{machine_facts()['cpu']}, {torch.get_num_threads()} of its threads"


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
