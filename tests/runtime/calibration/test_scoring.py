"""What is measured: the decode steps that are served, and the difference that they make."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.support.calibrations import calibration, opened, tiny_latent_config, tiny_state
from tests.support.latent_oracle import LatentOracle
from torch import Tensor

from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.registry import create_sharing
from twinflow.parallel.latent.transforms.basis import LatentTransform
from twinflow.parallel.latent.transforms.fitting import fit_transform
from twinflow.parallel.latent.transforms.registry import create_transform_kind
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.runtime.calibration.collecting import collect_moments
from twinflow.runtime.calibration.corpus import Corpus
from twinflow.runtime.calibration.scoring import (
    WindowDifference,
    decode_rows,
    score_against,
    score_exact,
)
from twinflow.runtime.calibration.subject import Subject
from twinflow.runtime.model_runner import SequenceRows


def silent(*_: object) -> None:
    return


def fitted(subject: Subject, corpus: Corpus, kind: str, scheme: LatentScheme) -> LatentTransform:
    moments = collect_moments(subject, corpus.calibration, silent)
    return fit_transform(create_transform_kind(kind), moments, scheme)


def test_moments_are_those_of_the_latents(tmp_path: Path) -> None:
    """Of the first layer, computed once more in float64 from the weights."""
    subject, corpus = opened(calibration(tmp_path))
    found = collect_moments(subject, corpus.calibration, silent)[0]
    state = {name: tensor.double() for name, tensor in tiny_state().items()}
    latent = subject.latent

    def norm(rows: Tensor, gain: Tensor | None, eps: float) -> Tensor:
        rows = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + eps)
        return rows if gain is None else rows * gain

    def weight(name: str) -> Tensor:
        return state[f"model.layers.0.{name}.weight"]

    tokens = torch.tensor([token for window in corpus.calibration for token in window])
    hidden = state["model.embed_tokens.weight"][tokens]
    rows = norm(hidden, weight("input_layernorm"), subject.config.rms_norm_eps)
    raw = rows @ weight("self_attn.kv_a_proj_with_mqa").mT
    latents = norm(raw[:, : latent.kv_rank], None, latent.norm_eps)
    compressed = norm(
        rows @ weight("self_attn.q_a_proj").mT, weight("self_attn.q_a_layernorm"), 1e-6
    )
    queries = (compressed @ weight("self_attn.q_b_proj").mT).view(len(rows), 8, -1)
    expand = weight("self_attn.kv_b_proj") * weight("self_attn.kv_a_layernorm")
    heads = expand.view(8, latent.nope_dim + latent.value_dim, latent.kv_rank)
    absorbed = (
        torch.einsum("thp,hpc->thc", queries[..., : latent.nope_dim], heads[:, : latent.nope_dim])
        * (latent.nope_dim + latent.rope_dim) ** -0.5
    )
    flat, values = absorbed.flatten(0, 1), heads[:, latent.nope_dim :].flatten(0, 1)
    assert found.tokens == len(tokens)
    assert torch.allclose(found.covariance, latents.mT.cov(correction=0), atol=1e-5)
    assert torch.allclose(found.queries, flat.mT @ flat / len(tokens), rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.values, values.mT @ values, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "common", "shards"), [("none", 0, 2), ("joint", 8, 4)])
def test_differences_are_those_of_the_equations(
    tmp_path: Path, kind: str, common: int, shards: int
) -> None:
    """A float64 oracle without cache, ranks or kernels finds the same losses."""
    subject, corpus = opened(calibration(tmp_path))
    scheme = LatentScheme(kind="tpla", shards=shards, common=common)
    transform = fitted(subject, corpus, kind, scheme)
    scheme = LatentScheme(kind="tpla", shards=shards, common=common, basis=transform.id)
    exact = score_exact(subject, corpus, silent, silent)
    found = score_against(exact, subject, corpus, transform, scheme, silent)

    config, state = tiny_latent_config(), tiny_state()
    approximate = LatentOracle(config, state, scheme, transform)
    for index, window in enumerate(corpus.held_out):
        scored = slice(corpus.prompt, corpus.window)
        expected = [
            F.log_softmax(oracle.logits(window[:-1], corpus.prompt)[scored], dim=1)
            for oracle in (LatentOracle(config, state), approximate)
        ]
        targets = torch.tensor(window[corpus.prompt + 1 :])
        assert torch.equal(exact.targets[index], targets)
        assert (exact.log_probs[index] - expected[0]).abs().max() < 1e-4
        wanted = WindowDifference.of(expected[1], expected[0], targets)
        assert found[index].nll == pytest.approx(wanted.nll, abs=1e-3)
        assert found[index].kl == pytest.approx(wanted.kl, abs=1e-3)
        assert abs(found[index].agreeing - wanted.agreeing) <= 1
    assert sum(window.kl for window in found) > 0.1  # a random model shows that it matters


def test_one_step_for_all_tokens_equals_a_step_for_each(tmp_path: Path) -> None:
    subject, corpus = opened(calibration(tmp_path))
    scheme = LatentScheme(kind="tpla", shards=2)
    transform = fitted(subject, corpus, "pca", scheme)
    scheme = LatentScheme(kind="tpla", shards=2, basis=transform.id)
    window, prompt, blocks = corpus.held_out[0], corpus.prompt, subject.blocks

    def work(ranks: RankGroup) -> tuple[Tensor, Tensor]:
        sharing = create_sharing(scheme, ranks, ranks.neighbours(2))
        runner = subject.runner(LatentPlan(sharing, transform))
        at_once = runner.forward(list(decode_rows(window, prompt, blocks))).clone()
        runner.forward([SequenceRows(window[:prompt], 0, blocks, False, prompt)])
        steps = [
            runner.forward([SequenceRows([window[at]], at, blocks, True, prompt)]).clone()
            for at in range(prompt, len(window) - 1)
        ]
        return at_once, torch.cat(steps)

    for at_once, steps in run_ranks(2, work):
        assert (at_once - steps).abs().max() < 1e-5


def test_one_shard_costs_nothing(tmp_path: Path) -> None:
    subject, corpus = opened(calibration(tmp_path))
    scheme = LatentScheme(kind="tpla", shards=1)
    transform = fitted(subject, corpus, "joint", scheme)
    scheme = LatentScheme(kind="tpla", shards=1, basis=transform.id)
    heard = []
    exact = score_exact(subject, corpus, silent, silent)
    found = score_against(
        exact, subject, corpus, transform, scheme, lambda *done: heard.append(done)
    )
    assert all(abs(window.nll) < 1e-3 and abs(window.kl) < 1e-5 for window in found)
    assert sum(window.agreeing for window in found) == 16 * len(corpus.held_out)
    assert heard[-1] == (len(found), len(found))


def test_a_difference_is_counted_token_by_token() -> None:
    exact = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    found = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.6, 0.2]]).log()
    difference = WindowDifference.of(found, exact, torch.tensor([0, 2]))
    assert difference.agreeing == 1
    assert difference.nll == pytest.approx(float(torch.tensor(2.0).log() - torch.tensor(2.0).log()))
    kl = (exact.exp() * (exact - found)).sum()
    assert difference.kl == pytest.approx(float(kl), rel=1e-5)


def test_the_exact_model_is_the_plain_one(tmp_path: Path) -> None:
    subject, corpus = opened(calibration(tmp_path))
    exact = score_exact(subject, corpus, silent, silent)
    runner = subject.runner(LatentPlan.plain(OneRank()))
    window = corpus.held_out[0]
    last = runner.forward(
        [SequenceRows(window[:-1], 0, subject.blocks, True, prompt_tokens=len(window))]
    )
    assert (F.log_softmax(last[0], 0) - exact.log_probs[0][-1]).abs().max() < 1e-4
    assert exact.nll > 0
