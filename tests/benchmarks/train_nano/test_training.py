"""A training learns, can be stopped anywhere, and looks at no token before its time."""

import io
from pathlib import Path

import pytest
import torch
from benchmarks.train_nano.dense_model import DenseShape
from benchmarks.train_nano.latent_model import LatentModel, LatentShape
from benchmarks.train_nano.schedule import Schedule
from benchmarks.train_nano.training import HeldOut, Trainer, evaluate, trained_weights
from tests.support.nano_models import TINY_DENSE, TINY_LATENT, tiny

SCHEDULE = Schedule(tokens=8 * 2048, batch=2048, warmup=2048)
BYTES = torch.full((TINY_LATENT.vocabulary,), 3)


def test_the_loss_falls_below_that_of_guessing(tmp_path: Path) -> None:
    said = io.StringIO()
    trainer = Trainer(_fresh(), SCHEDULE, tmp_path, said)
    trainer.run(_text(), HeldOut(_text()[:1025], BYTES))
    loss = evaluate(_trained(tmp_path), HeldOut(_text()[:1025], BYTES))
    assert loss.per_token < 0.7 * torch.tensor(TINY_LATENT.vocabulary).log()
    assert loss.per_byte == pytest.approx(loss.per_token / 3)
    assert loss.tokens == 1024
    assert f"held out: {loss.per_token:.4f} nats per token" in said.getvalue()


def test_a_stopped_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    held_out = HeldOut(_text()[:1025], BYTES)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    Trainer(_fresh(), SCHEDULE, straight, io.StringIO()).run(_text(), held_out)
    Trainer(_fresh(), SCHEDULE, stopped, io.StringIO()).run(_text(), held_out, until=3)
    Trainer(_fresh(), SCHEDULE, stopped, io.StringIO()).run(_text(), held_out)
    for name, weight in trained_weights(straight).items():
        assert torch.equal(weight, trained_weights(stopped)[name]), name


@pytest.mark.parametrize("shape", [TINY_LATENT, TINY_DENSE], ids=["latent", "dense"])
def test_a_token_does_not_see_those_after_it(shape: LatentShape | DenseShape) -> None:
    model, ids = tiny(shape), torch.arange(40).unsqueeze(0)
    changed = torch.cat((ids[:, :30], ids[:, 30:] + 100), dim=1)
    one, other = model(ids)[0], model(changed)[0]
    torch.testing.assert_close(one[:, :30], other[:, :30])
    assert (one[:, 30:] - other[:, 30:]).abs().max() > 0.1


def _fresh() -> LatentModel:
    torch.manual_seed(0)
    return LatentModel(TINY_LATENT)


def _trained(folder: Path) -> LatentModel:
    model = _fresh()
    model.load_state_dict(trained_weights(folder))
    return model


def _text() -> torch.Tensor:
    """Counting, over and over: easy to learn."""
    return torch.arange(20_000) % 100
