"""Offline use: a model in this process, prompts in, completions out.

    from twinflow import LLM, SamplingParams
    llm = LLM("path/to/model")
    for output in llm.generate(["Once upon a time"], SamplingParams(max_tokens=32)):
        print(output.outputs[0].text)

One engine, no network, no other process and so no other rank, one caller at a time. Tokens are the
same as when the model is served.
"""

import itertools
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from tqdm import tqdm

from twinflow.protos.errors import ConfigError, InvalidRequest
from twinflow.runtime.build import BuiltEngine, build_engine
from twinflow.runtime.engine_plan import EngineOptions
from twinflow.runtime.outputs import CompletionOutput, FinishReason, RequestOutput, TokenLogprobs
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams, completion_seed
from twinflow.runtime.speculative.account import SpeculationAccount, together
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.text.chat_template import ChatTemplate, UnlimitedRenderer
from twinflow.runtime.text.sequence_text import SequenceText, TextDelta
from twinflow.runtime.text.tokenizer import Tokenizer

# A text, or the token ids of one.
Prompt = str | Sequence[int]
Message = Mapping[str, str]
# Where nothing can be done, only a policy's patience can be the reason.
_BLOCKED_WAIT_S = 0.001


@dataclass(slots=True)
class _Completion:
    """A completion in the making."""

    text: SequenceText
    index: int
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: TextDelta | None = None
    cached_tokens: int = 0
    speculation: SpeculationAccount | None = None

    def add(self, delta: TextDelta) -> None:
        """Take in new text."""
        self.pieces.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        if delta.finish_reason is not None:
            self.end = delta

    def output(self) -> CompletionOutput:
        """What has come of it."""
        end = self.end or TextDelta(finish_reason=FinishReason.ABORT)
        return CompletionOutput(
            index=self.index,
            text="".join(self.pieces),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            finish_reason=end.finish_reason or FinishReason.ABORT,
            stop_reason=end.stop_reason,
            speculation=self.speculation,
        )


class LLM:
    """A model, loaded.

    Args:
        model: directory of the checkpoint, as Hugging Face lays it out.
        options: further `EngineOptions` by name, such as `dtype="float32"`, `max_model_len=2048`,
            `kv_cache_memory=1 << 30` or `speculative_config={"method": "ngram"}`.

    Raises:
        CheckpointError: the directory cannot be served.
        ConfigError: an option is unknown or does not fit; `tensor_parallel_size` above 1 is one.
    """

    def __init__(self, model: str | Path, **options: object) -> None:
        if options.pop("tensor_parallel_size", 1) != 1:
            raise ConfigError(
                "tensor_parallel_size: LLM computes in this process alone; serve the model with "
                "`twinflow serve MODEL --mixed 1 --tensor-parallel-size N` and use twinflow.Client"
            )
        known = EngineOptions.__dataclass_fields__
        unknown = sorted(options.keys() - known.keys())
        if unknown:
            raise ConfigError(f"LLM has no option {unknown[0]!r}; options are {sorted(known)}")
        given = options.pop("speculative_config", None)
        options["speculative_config"] = None if given is None else _speculative_config(given)
        settings = replace(EngineOptions(model=Path(model)), **options)  # type: ignore[arg-type]
        self._built: BuiltEngine = build_engine(settings, clock=time.monotonic)
        self._engine = self._built.engine
        self._tokenizer = Tokenizer.load(Path(model))
        template = ChatTemplate.load(Path(model))
        self._renderer = UnlimitedRenderer(template) if template else None
        self._numbers = itertools.count()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def max_model_len(self) -> int:
        """Longest sequence, prompt and output together."""
        return self._built.config.max_model_len

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts, all of them together.

        Args:
            prompts: one prompt or many; a prompt is a text or a list of token ids.
            params: for all prompts, or one for each; the default is `SamplingParams()`.
            use_tqdm: show progress.

        Returns:
            One output per prompt, in their order.

        Raises:
            InvalidRequest: a prompt or parameter cannot be served; nothing was generated.
            EngineError: a step failed.
        """
        many = _as_list(prompts)
        each = _params_for(many, params)
        texts = [prompt if isinstance(prompt, str) else None for prompt in many]
        ids = [self._token_ids(prompt) for prompt in many]
        completions: dict[str, _Completion] = {}
        try:
            self._submit(ids, each, completions)
            self._run(completions, show=use_tqdm)
        finally:
            for request_id in completions:
                self._engine.abort(request_id)
            # Whatever an interrupted run left behind is not for the next one.
            self._engine.take_outputs()
        outputs = iter(completions.values())
        return [
            self._output(text, tokens, [next(outputs) for _ in range(param.n)])
            for text, tokens, param in zip(texts, ids, each, strict=True)
        ]

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        use_tqdm: bool = False,
    ) -> RequestOutput:
        """Answer a conversation, by the model's chat template.

        Args:
            messages: `{"role": ..., "content": ...}`, oldest first.
            params: the default is `SamplingParams(max_tokens=None)`: up to the context's end.
            use_tqdm: show progress.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses the messages.
        """
        if self._renderer is None:
            raise InvalidRequest("the model has no chat template; use generate", "messages")
        prompt = self._renderer.render(messages)
        ids = self._tokenizer.encode(prompt, add_special_tokens=False)
        return self.generate([ids], params or SamplingParams(max_tokens=None), use_tqdm=use_tqdm)[0]

    def check_integrity(self) -> None:
        """Between two calls nothing runs and every block is idle; raises AssertionError if not."""
        self._engine.check_integrity()
        blocks = self._engine.blocks
        if len(self._engine.queues) or blocks.num_idle != blocks.num_blocks:
            raise AssertionError(
                f"{len(self._engine.queues)} requests are left, "
                f"{blocks.num_idle} of {blocks.num_blocks} blocks are idle"
            )

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, param="prompts")
        vocab_size = self._built.model.vocab_size
        if not _are_token_ids(prompt, vocab_size):
            raise InvalidRequest(
                f"a prompt is a text, or a list of token ids in [0, {vocab_size})", "prompts"
            )
        return list(prompt)

    def _submit(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        completions: dict[str, _Completion],
    ) -> None:
        """Queue n sequences for each prompt; those that the engine took are in `completions`."""
        for prompt, param in zip(prompts, params, strict=True):
            seed = secrets.randbits(63) if param.seed is None else param.seed
            room = max(1, self.max_model_len - len(prompt))
            for index in range(param.n):
                settled = replace(
                    param,
                    n=1,
                    seed=completion_seed(seed, index),
                    max_tokens=room if param.max_tokens is None else param.max_tokens,
                )
                request = Request(
                    request_id=f"offline-{next(self._numbers)}",
                    prompt_token_ids=prompt,
                    params=settled,
                    eos_token_ids=self._built.model.eos_token_ids,
                )
                self._engine.add_request(request)
                text = SequenceText(self._tokenizer, settled, prompt)
                completions[request.request_id] = _Completion(text, index)

    def _run(self, completions: Mapping[str, _Completion], *, show: bool) -> None:
        """Step until every completion has ended."""
        with tqdm(total=len(completions), disable=not show) as bar:
            while self._engine.runnable:
                if not self._engine.step():
                    time.sleep(self._engine.idle_seconds(_BLOCKED_WAIT_S))
                outputs = self._engine.take_outputs()
                for _, error in outputs.failures:
                    raise error
                for request_id, delta in outputs.deltas:
                    completion = completions[request_id]
                    completion.cached_tokens = delta.cached_tokens
                    completion.speculation = delta.speculation
                    completion.add(completion.text.push(delta))
                    if completion.end is not None:
                        # A stop string ends a sequence that the engine would go on with.
                        self._engine.abort(request_id)
                        bar.update()

    def _output(
        self, text: str | None, tokens: Sequence[int], completions: Sequence[_Completion]
    ) -> RequestOutput:
        return RequestOutput(
            request_id=f"offline-{next(self._numbers)}",
            prompt=text,
            prompt_token_ids=tuple(tokens),
            outputs=tuple(completion.output() for completion in completions),
            cached_tokens=completions[0].cached_tokens,
            speculation=together(completion.speculation for completion in completions),
        )


def _speculative_config(given: object) -> SpeculativeConfig:
    try:
        return given if isinstance(given, SpeculativeConfig) else SpeculativeConfig.parse(given)
    except ValueError as error:
        raise ConfigError(f"speculative_config: {error}") from None


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Tell one prompt from many: a text, or a list that begins with a token id, is one."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))


def _are_token_ids(prompt: object, vocab_size: int) -> bool:
    return isinstance(prompt, Sequence) and all(
        isinstance(token, int) and 0 <= token < vocab_size for token in prompt
    )


def _params_for(
    prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * len(prompts)
    if len(params) != len(prompts):
        raise InvalidRequest(f"{len(prompts)} prompts and {len(params)} sampling params", "params")
    return list(params)
