"""What held-out text costs with and without sliced latents.

Each window begins with a prompt, which every layout computes exactly. Every token behind it is a
row group of its own, as in a decode step, with the attention and the cached latents of generated
tokens; that all of them go through the model in one step changes nothing, because a row sees the
rows before it in any case. So errors add up from token to token as they do when text is generated.

The shards of a worker are threads of this process that run what its ranks run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.registry import create_sharing
from twinflow.parallel.latent.transforms.basis import LatentTransform
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.runtime.calibration.corpus import Corpus, Window
from twinflow.runtime.calibration.subject import Subject
from twinflow.runtime.checkpoint.weights import Progress
from twinflow.runtime.model_runner import ModelRunner, SequenceRows

Scored = Callable[[int, int], None]
"""Called with the windows done and those in all."""


@dataclass(frozen=True, slots=True)
class ExactScores:
    """The model as it is.

    Attributes:
        log_probs: float32 [scored tokens, vocabulary] of each window, on the CPU.
        targets: int64 [scored tokens] of each window, the tokens that the text really has.
    """

    log_probs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    @property
    def nll(self) -> float:
        """Nats of all scored tokens."""
        return sum(
            float(F.nll_loss(found, targets, reduction="sum"))
            for found, targets in zip(self.log_probs, self.targets, strict=True)
        )


@dataclass(frozen=True, slots=True)
class WindowDifference:
    """How one window differs from the exact model.

    Attributes:
        nll: nats by which its tokens are less likely.
        agreeing: tokens whose most likely token is the same.
        kl: nats from the exact distributions, added up.
    """

    nll: float
    agreeing: int
    kl: float

    @classmethod
    def of(cls, found: Tensor, exact: Tensor, targets: Tensor) -> "WindowDifference":
        """From log probabilities [tokens, vocabulary] and the tokens of the text."""
        chosen = targets.unsqueeze(1)
        nll = (exact.gather(1, chosen) - found.gather(1, chosen)).double().sum()
        agreeing = (found.argmax(1) == exact.argmax(1)).sum()
        kl = F.kl_div(found.double(), exact.double(), reduction="sum", log_target=True)
        return cls(float(nll), int(agreeing), float(kl))


def score_exact(subject: Subject, corpus: Corpus, loading: Progress, scored: Scored) -> ExactScores:
    """Every scored token with exact attention, on one rank."""
    runner = subject.runner(LatentPlan.plain(OneRank()), loading)
    found = tuple(log_probs(runner, subject, corpus.held_out, corpus.prompt, scored))
    targets = tuple(torch.tensor(window[corpus.prompt + 1 :]) for window in corpus.held_out)
    return ExactScores(found, targets)


def score_against(
    exact: ExactScores,
    subject: Subject,
    corpus: Corpus,
    transform: LatentTransform,
    scheme: LatentScheme,
    scored: Scored,
) -> list[WindowDifference]:
    """Every scored token with sliced latents, as `scheme.shards` ranks compute it.

    Args:
        exact: what to compare with.
        subject: the model.
        corpus: the text.
        transform: bases of the latents.
        scheme: how they are sliced.
        scored: told how far it is.

    Returns:
        A difference for each window.
    """

    def work(ranks: RankGroup) -> list[WindowDifference]:
        sharing = create_sharing(scheme, ranks, ranks.neighbours(scheme.shards))
        runner = subject.runner(LatentPlan(sharing, transform))
        hears = scored if ranks.rank == 0 else silent
        windows = log_probs(runner, subject, corpus.held_out, corpus.prompt, hears)
        differences = []
        for found, expected, targets in zip(windows, exact.log_probs, exact.targets, strict=True):
            if ranks.rank == 0:
                differences.append(WindowDifference.of(found, expected, targets))
        return differences

    return run_ranks(scheme.shards, work)[0]


def decode_rows(window: Window, prompt: int, blocks: Sequence[int]) -> Iterator[SequenceRows]:
    """A window, without its last token, as a prompt and decode rows whose logits are wanted."""
    yield SequenceRows(window[:prompt], 0, blocks, samples=False, prompt_tokens=prompt)
    for position in range(prompt, len(window) - 1):
        yield SequenceRows(
            window[position : position + 1], position, blocks, samples=True, prompt_tokens=prompt
        )


def log_probs(
    runner: ModelRunner,
    subject: Subject,
    windows: Sequence[Window],
    prompt: int,
    scored: Scored,
) -> Iterator[Tensor]:
    """float32 [scored tokens, vocabulary] of each window, on the CPU.

    Args:
        runner: of the model, or of one rank of it.
        subject: the model.
        windows: of text, each with one more token than is computed.
        prompt: tokens of each that are a prompt; the others are scored.
        scored: told how far it is.
    """
    for done, window in enumerate(windows):
        scored(done, len(windows))
        logits = runner.forward(list(decode_rows(window, prompt, subject.blocks)))
        yield F.log_softmax(logits.float(), dim=1).cpu()
    scored(len(windows), len(windows))


def silent(_done: int, _total: int) -> None:
    """Tells nobody."""
