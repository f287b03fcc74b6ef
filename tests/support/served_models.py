"""Models for whole deployments: the small real one, and a tiny random one with a chat template."""

from pathlib import Path

from tests.support.checkpoints import write_checkpoint
from tests.support.tiny_models import tiny_config
from tests.support.tokenizers import write_chatml_tokenizer

from twinflow.runtime.models.config import ModelConfig

REAL_MODEL = Path(__file__).parents[2] / ".models" / "smollm2-135m"
TINY_VOCAB = 400
TINY_CONTEXT = 32768


def require_real_model() -> Path:
    """SmolLM2-135M; fails with the command that fetches it."""
    assert (REAL_MODEL / "config.json").is_file(), f"{REAL_MODEL} is missing: run `make model`"
    return REAL_MODEL


def write_tiny_model(directory: Path) -> Path:
    """A random model of three layers that reads and writes ChatML."""
    write_checkpoint(directory, served_config())
    return write_chatml_tokenizer(directory)


def served_config() -> ModelConfig:
    """Its shape: a vocabulary for the tokenizer, and a context that takes seconds to fill."""
    return tiny_config(vocab_size=TINY_VOCAB, max_position=TINY_CONTEXT)
