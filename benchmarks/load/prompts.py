"""Makes request bodies: prompts with real shared prefixes, and requests that must be refused.

Prompts are random but reproducible. What two requests share (a prefix, or a trace's block) is made
from a seed of its own, so that a prefix cache on the server sees real hits. A chat prompt maps the
same ids to common words, about one token each; its length is therefore approximate, and the length
of a token-id prompt is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import cast

import msgspec
import numpy as np

from benchmarks.load.records import Kind, PlannedRequest, PreparedRequest
from twinflow.protos.errors import ConfigError

_WORDS = (  # noqa: SIM905 - as a list it would fill eighty lines
    "the of and to in is that for it as was with be by on not he his but at are this have from or "
    "had an they which one you were all her she there would their we him been has when who will "
    "no more if out so up said what its about than into them can only other time new some could "
    "these two may first then do any like my now over such our man me even most made after also"
).split()


class Api(StrEnum):
    """The endpoint that is measured, by its path below /v1."""

    COMPLETIONS = "completions"
    CHAT = "chat/completions"


class _Origin(IntEnum):
    """What a run of prompt tokens is made from; part of its seed."""

    OWN = 1
    BLOCK = 2
    PREFIX = 3


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """How requests are written.

    Attributes:
        model: value of the `model` field.
        api: completions (token-id prompts) or chat (text prompts).
        seed: makes the contents; runs with different seeds share no prefix.
        token_range: ids are drawn from [low, high); all must exist and none should be special.
        prefix_tokens: length of a shared prefix.
        block_tokens: length of a trace's block, scaled like every other length.
        ignore_eos: send `ignore_eos` and `min_tokens`, so that the token count is known beforehand.
        return_token_ids: ask for the ids of each chunk, to count tokens exactly.
        temperature: sampling temperature.
    """

    model: str
    api: Api = Api.COMPLETIONS
    seed: tuple[int, ...] = (0,)
    token_range: tuple[int, int] = (1000, 20000)
    prefix_tokens: int = 0
    block_tokens: int = 512
    ignore_eos: bool = True
    return_token_ids: bool = False
    temperature: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.token_range
        if not 0 <= low < high:
            raise ConfigError(f"--token-range needs 0 <= LOW < HIGH, not {low}:{high}")


class PromptBuilder:
    """Writes the body of each planned request."""

    def __init__(self, config: PromptConfig) -> None:
        self._config = config

    def token_ids(self, plan: PlannedRequest) -> list[int]:
        """The prompt: shared prefix, then shared blocks, then tokens of its own.

        The prefix comes on top of `plan.shape.input_tokens`; blocks count towards it.
        """
        prefix: list[int] = []
        if plan.prefix is not None:
            prefix = self._run(_Origin.PREFIX, plan.prefix, self._config.prefix_tokens)
        ids: list[int] = []
        wanted = plan.shape.input_tokens
        for block in plan.shape.blocks:
            if len(ids) >= wanted:
                break
            ids += self._run(_Origin.BLOCK, block, self._config.block_tokens)
        if len(ids) < wanted:
            ids += self._run(_Origin.OWN, plan.index, wanted - len(ids))
        return prefix + ids[:wanted]

    def prepare(self, plan: PlannedRequest, request_id: str) -> PreparedRequest:
        """Encode a request, so that nothing but sending is left for when it is due."""
        if plan.kind is Kind.BAD:
            return PreparedRequest(plan, request_id, self._bad_body(plan), None)
        expected = plan.shape.output_tokens if self._config.ignore_eos else None
        return PreparedRequest(plan, request_id, msgspec.json.encode(self._fields(plan)), expected)

    def _run(self, origin: _Origin, key: int, count: int) -> list[int]:
        rng = np.random.default_rng([*self._config.seed, origin, key])
        return cast("list[int]", rng.integers(*self._config.token_range, count).tolist())

    def _fields(self, plan: PlannedRequest) -> dict[str, object]:
        config = self._config
        ids = self.token_ids(plan)
        fields: dict[str, object] = {
            "model": config.model,
            "max_tokens": plan.shape.output_tokens,
            "temperature": config.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if config.api is Api.CHAT:
            fields["messages"] = [{"role": "user", "content": _as_words(ids)}]
        else:
            fields["prompt"] = ids
        if config.ignore_eos:
            fields |= {"ignore_eos": True, "min_tokens": plan.shape.output_tokens}
        if config.return_token_ids:
            fields["return_token_ids"] = True
        return fields

    def _bad_body(self, plan: PlannedRequest) -> bytes:
        """One of the ways to be wrong, in turn; an OpenAI-compatible server answers 4xx to each."""
        fields = self._fields(plan)
        prompt = "messages" if self._config.api is Api.CHAT else "prompt"
        wrong: list[dict[str, object]] = [
            {"temperature": -1.0},
            {"max_tokens": 0},
            {"max_tokens": "many"},
            {prompt: None},
            {"model": "no-such-model"},
        ]
        which = plan.index % (len(wrong) + 1)
        if which == len(wrong):
            return msgspec.json.encode(fields)[:-1]
        return msgspec.json.encode(fields | wrong[which])


def _as_words(ids: Sequence[int]) -> str:
    return " ".join(_WORDS[token % len(_WORDS)] for token in ids)
