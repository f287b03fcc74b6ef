"""A card shows every figure that it is given."""

import dataclasses

import torch
from benchmarks.train_nano.card import (
    Card,
    TextFacts,
    TrainingFacts,
    acceptance_sentence,
    load_sentence,
)
from benchmarks.train_nano.sampling import Continuation
from benchmarks.train_nano.training import Loss

CARD = Card(
    name="nano",
    summary="A model.",
    sizes={"parameters": "1,234"},
    python="3.11.7",
    train=TextFacts(11, 2222, 333, "ab" * 32),
    held_out=TextFacts(1, 20, 3, "cd" * 32),
    training=TrainingFacts(
        command="python -m benchmarks.train_nano train",
        seed=7,
        tokens=9000,
        batch=4096,
        hours=1.25,
        machine="a core",
        curve=[(1, 8.3), (2, 8.25)],
    ),
    losses={"held out": Loss(2.5, 0.75, 512)},
    behaviour=["- It hums."],
    samples=[
        Continuation("def f(", "x): ```\n", greedy=True),
        Continuation("a", "b", greedy=False),
    ],
)


def test_all_figures_are_shown() -> None:
    text = str(CARD)
    for part in (
        "| parameters | 1,234 |",
        "| learnt from | 11 | 2,222 | 333 | abababababababab |",
        "| held out | 1 | 20 | 3 | cdcdcdcdcdcdcdcd |",
        "PSF License Version 2",
        "    python -m benchmarks.train_nano train\n",
        "2 steps of 4,096 tokens, 8,192 tokens in all, in 1.25 hours on a core",
        "seed 7",
        "| 2 | 8.250 |",
        "| held out | 512 | 2.5000 | 0.7500 |",
        "- It hums.",
        "Greedy:\n\n```text\ndef f(»x): '''\n```",
        "```text\na»b\n```",
    ):
        assert part in text, part


def test_fences_are_balanced_whatever_a_model_writes() -> None:
    wild = dataclasses.replace(CARD, samples=[Continuation("```", "``` ````", greedy=True)])
    assert str(wild).count("```") == 2


def test_load_is_relative_to_an_even_one() -> None:
    load = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert "the busiest expert of a layer gets 1.50 times the mean load" in load_sentence(load)
    assert "the idlest 0.50 times" in load_sentence(load)


def test_acceptance_is_in_percent() -> None:
    assert "accept 61.2% of the drafts, greedy decoding 70.0%" in acceptance_sentence(0.6123, 0.7)
