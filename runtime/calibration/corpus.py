"""A text as windows of tokens.

The first half of the windows calibrates, the other half measures, so that nothing is measured on
text that a transform has seen. Does not load torch.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from twinflow.protos.errors import ConfigError
from twinflow.runtime.text.tokenizer import Tokenizer

# Fewer would say little about a mean, and nothing about how sure it is.
_LEAST_SCORED = 4
# Latents for each of their columns, without which second moments are noise.
_LEAST_PER_COLUMN = 4

Window = list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Windows of one text.

    Attributes:
        name: of the file.
        digest: of its bytes.
        window: tokens that are computed in each window.
        prompt: how many of these are a prompt; the others are scored.
        calibration: windows to calibrate with.
        held_out: windows to measure on, each with one more token, which is only predicted.
    """

    name: str
    digest: str
    window: int
    prompt: int
    calibration: tuple[Window, ...]
    held_out: tuple[Window, ...]

    @classmethod
    def read(
        cls, path: Path, tokenizer: Tokenizer, *, tokens: int, window: int, columns: int
    ) -> "Corpus":
        """Cut a file into windows.

        Args:
            path: UTF-8 text.
            tokenizer: of the model; its first token begins each window if it has one.
            tokens: of the text, at most, from its beginning.
            window: tokens that are computed in each window.
            columns: of a latent, which decide how much is enough.

        Raises:
            ConfigError: the file cannot be read, or is too short.
        """
        try:
            data = path.read_bytes()
            text = data.decode()
        except OSError as error:
            raise ConfigError(f"--text {path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"--text {path}: is not UTF-8 at byte {error.start}") from error
        ids = tokenizer.encode(text, add_special_tokens=False)[:tokens]
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        step = window + 1 - len(begin)
        windows = [begin + ids[at : at + step] for at in range(0, len(ids) - step + 1, step)]
        least = max(_LEAST_SCORED, -(-_LEAST_PER_COLUMN * columns // window))
        half = len(windows) // 2
        if half < least:
            raise ConfigError(
                f"--text {path}: {len(ids)} tokens are too few for latents of {columns} columns; "
                f"at least {2 * least * step} are needed, half of them to calibrate"
            )
        return cls(
            name=path.name,
            digest=hashlib.sha256(data).hexdigest(),
            window=window,
            prompt=window // 2,
            calibration=tuple(each[:window] for each in windows[:half]),
            held_out=tuple(windows[half:]),
        )
