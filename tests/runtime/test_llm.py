"""Offline generation with tiny models: the same tokens whatever surrounds a prompt."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import byte_tokenizer, small_config, write_checkpoint
from tests.support.runners import FedSequence, feed, make_model, make_runner
from tests.support.tokenizers import CHATML, write_tokenizer

from twinflow import LLM, RequestOutput, SamplingParams
from twinflow.protos.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from twinflow.runtime.outputs import FinishReason
from twinflow.runtime.sampling_params import completion_seed
from twinflow.runtime.speculative.account import together

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
TEXTS = ["hello world", "12 hello", "x", "The capital of France is"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a chat template."""
    directory = write_checkpoint(tmp_path_factory.mktemp("model"))
    return write_tokenizer(
        directory, byte_tokenizer(), eos_token="<|im_end|>", chat_template=CHATML
    )


def load(model: Path, **options: object) -> LLM:
    """A small engine."""
    return LLM(model, **{"dtype": "float32", "num_kv_blocks": 65, "block_size": 8, **options})


@pytest.fixture(scope="module")
def shared(model: Path) -> LLM:
    """An engine that several tests use one after the other."""
    return load(model)


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    """The shared engine, which has to get everything back."""
    yield shared
    shared.check_integrity()


def tokens(outputs: list[RequestOutput]) -> list[list[tuple[int, ...]]]:
    """Token ids of every completion of every prompt."""
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


def test_greedy_tokens_are_the_models(llm: LLM) -> None:
    """Against the bare model, fed token by token."""
    prompt = llm.tokenizer.encode(TEXTS[0])
    (output,) = llm.generate([prompt], GREEDY, use_tqdm=False)
    runner = make_runner(make_model(small_config()), num_blocks=32, block_size=8)
    sequence = FedSequence(list(prompt), range(1, 30))
    feed(runner, [(sequence, len(prompt))])
    for token in output.outputs[0].token_ids:
        assert token == sequence.logits[sequence.position - 1].argmax().item()
        sequence.token_ids = [*sequence.token_ids, token]
        feed(runner, [(sequence, 1)])
    assert output.prompt is None
    assert output.prompt_token_ids == tuple(prompt)


@dataclass(frozen=True)
class Mix:
    """Prompts and parameters of all sorts, and what comes of each alone."""

    prompts: list[str]
    params: list[SamplingParams]
    alone: list[RequestOutput]


@pytest.fixture(scope="module")
def mix(shared: LLM) -> Mix:
    rng = random.Random(7)
    stem = "hello world 12 " * 2
    prompts = [stem[: rng.randrange(1, 30)] + "ab"[i % 2] * rng.randrange(1, 9) for i in range(16)]
    params = [
        SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_p=rng.choice([1.0, 0.8]),
            presence_penalty=rng.choice([0.0, 1.0]),
            seed=index,
            max_tokens=rng.randrange(4, 40),
            logprobs=2,
        )
        for index in range(16)
    ]
    alone = [
        shared.generate(prompt, param, use_tqdm=False)[0]
        for prompt, param in zip(prompts, params, strict=True)
    ]
    return Mix(prompts, params, alone)


@pytest.mark.parametrize(
    ("options", "preempts"),
    [
        ({"max_num_batched_tokens": 8, "max_num_seqs": 3}, False),
        ({"num_kv_blocks": 13, "max_model_len": 88, "enable_prefix_caching": False}, True),
        ({"num_kv_blocks": 13, "max_model_len": 88}, True),
        ({"block_size": 32, "max_model_len": 256}, False),
    ],
    ids=["chunks", "preemption", "preemption-cached", "blocks"],
)
def test_tokens_do_not_depend_on_the_engines_limits(
    model: Path, mix: Mix, options: dict[str, object], preempts: bool
) -> None:
    llm = load(model, **options)
    outputs = llm.generate(mix.prompts, mix.params, use_tqdm=False)
    assert [output.outputs for output in outputs] == [output.outputs for output in mix.alone]
    assert (llm._engine.counters.preemptions > 0) is preempts
    llm.check_integrity()


@pytest.mark.parametrize("method", ["ngram", "suffix", "token_recycling"])
def test_tokens_do_not_depend_on_proposals(model: Path, mix: Mix, method: str) -> None:
    config = {"method": method, "num_speculative_tokens": 3, "adaptive": False}
    llm = load(model, speculative_config=config, max_num_seqs=8, max_num_batched_tokens=32)
    outputs = llm.generate(mix.prompts, mix.params, use_tqdm=False)
    assert [output.outputs for output in outputs] == [output.outputs for output in mix.alone]
    total = llm._engine.counters.speculation
    each = [c.speculation for output in outputs for c in output.outputs if c.speculation]
    assert sum(account.draft_tokens for account in each) == total.draft_tokens > 0
    assert sum(account.accepted_tokens for account in each) == total.accepted_tokens
    assert together(output.speculation for output in outputs) == total
    llm.check_integrity()


def test_a_model_that_drafts_for_itself_is_always_right(model: Path, mix: Mix) -> None:
    config = {"method": "draft_model", "model": str(model), "num_speculative_tokens": 3}
    llm = load(model, speculative_config=config, max_num_seqs=8, max_num_batched_tokens=32)
    outputs = llm.generate(mix.prompts, mix.params, use_tqdm=False)
    assert [output.outputs for output in outputs] == [output.outputs for output in mix.alone]
    account = llm._engine.counters.speculation
    assert account.accepted_tokens == account.draft_tokens > 0
    llm.check_integrity()


@pytest.mark.parametrize("kind", ["beam", "dyspec", "sequoia"])
def test_tokens_do_not_depend_on_trees(model: Path, mix: Mix, kind: str) -> None:
    tree = {"type": kind, "width": 2, "depth": 3, "budget": 6}
    config: dict[str, object] = {"method": "token_recycling"}
    if kind != "sequoia":
        config = {"method": "draft_model", "model": str(model)}
    llm = load(
        model,
        speculative_config=config | {"tree": tree, "adaptive": False},
        max_num_seqs=8,
        max_num_batched_tokens=56,
    )
    outputs = llm.generate(mix.prompts, mix.params, use_tqdm=False)
    assert [output.outputs for output in outputs] == [output.outputs for output in mix.alone]
    account = llm._engine.counters.speculation
    assert account.draft_tokens > account.accepted_tokens > 0
    if kind != "sequoia":  # the model drafts for itself: the tree has what it says
        assert account.accepted_tokens > account.drafts
    llm.check_integrity()


def test_a_stop_string_inside_an_accepted_run_ends_the_sequence_there(
    llm: LLM, model: Path
) -> None:
    (whole,) = llm.generate(TEXTS[0], GREEDY, use_tqdm=False)
    text = whole.outputs[0].text
    speculating = load(model, speculative_config={"method": "token_recycling", "adaptive": False})
    speculating.generate(TEXTS[0], GREEDY, use_tqdm=False)  # and now it knows what comes
    for end in range(2, 9):
        params = replace(GREEDY, stop=(text[end : end + 2],))
        expected, found = (
            one.generate(TEXTS[0], params, use_tqdm=False)[0].outputs for one in (llm, speculating)
        )
        assert found == expected
    assert speculating._engine.counters.speculation.accepted_tokens > 0
    speculating.check_integrity()


class TestCompletions:
    """n completions of a prompt."""

    def test_are_what_requests_with_their_seeds_produce(self, llm: LLM) -> None:
        params = SamplingParams(n=3, seed=11, max_tokens=10)
        (together,) = llm.generate(TEXTS[0], params, use_tqdm=False)
        assert [completion.index for completion in together.outputs] == [0, 1, 2]
        for completion in together.outputs:
            alone = SamplingParams(seed=completion_seed(11, completion.index), max_tokens=10)
            (output,) = llm.generate(TEXTS[0], alone, use_tqdm=False)
            assert output.outputs[0].token_ids == completion.token_ids

    def test_each_prompt_has_its_own(self, llm: LLM) -> None:
        params = [SamplingParams(n=n, seed=1, max_tokens=3) for n in (2, 1, 3)]
        outputs = llm.generate(TEXTS[:3], params, use_tqdm=False)
        assert [len(output.outputs) for output in outputs] == [2, 1, 3]
        assert [output.prompt for output in outputs] == TEXTS[:3]
        assert len({output.request_id for output in outputs}) == 3

    def test_without_a_seed_they_differ(self, llm: LLM) -> None:
        params = SamplingParams(n=4, max_tokens=16)
        ((completions,)) = tokens(llm.generate("x", params, use_tqdm=False))
        assert len(set(completions)) > 1


class TestEnds:
    """Why completions end, and what is left of their text."""

    def test_length(self, llm: LLM) -> None:
        (output,) = llm.generate("x", GREEDY, use_tqdm=False)
        (completion,) = output.outputs
        assert completion.finish_reason is FinishReason.LENGTH
        assert len(completion.token_ids) == 12
        assert llm.tokenizer.decode(completion.token_ids) == completion.text

    def test_up_to_the_end_of_the_context(self, model: Path) -> None:
        llm = load(model, max_model_len=32)
        params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
        (output,) = llm.generate([[5] * 20], params, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 12

    def test_a_stop_string_ends_the_sequence_at_once(self, llm: LLM) -> None:
        (whole,) = llm.generate(TEXTS[0], GREEDY, use_tqdm=False)
        text = whole.outputs[0].text
        stop = text[3:5]
        params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True, stop=(stop,))
        (output,) = llm.generate(TEXTS[0], params, use_tqdm=False)
        (completion,) = output.outputs
        assert completion.text == text[: text.index(stop)]
        assert (completion.finish_reason, completion.stop_reason) == (FinishReason.STOP, stop)
        assert len(completion.token_ids) <= 12

    def test_logprobs(self, llm: LLM) -> None:
        params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=3)
        (output,) = llm.generate("x", params, use_tqdm=False)
        (completion,) = output.outputs
        assert [entry.token_id for entry in completion.logprobs] == list(completion.token_ids)
        for entry in completion.logprobs:
            assert entry.top[0] == (entry.token_id, entry.logprob)  # greedy takes the likeliest
            assert len(entry.top) == 3

    def test_cached_prompt_tokens_are_reported(self, llm: LLM) -> None:
        prompt = [7] * 20
        first, second = (llm.generate([prompt], GREEDY, use_tqdm=False)[0] for _ in range(2))
        assert (first.cached_tokens, second.cached_tokens) == (0, 16)


class TestPrompts:
    """What counts as one prompt, as many, and as a mistake."""

    def test_a_text_and_its_tokens_are_one_prompt_each(self, llm: LLM) -> None:
        ids = llm.tokenizer.encode(TEXTS[0])
        forms: list[Any] = [TEXTS[0], ids, tuple(ids), [TEXTS[0]], [ids]]
        outputs = [llm.generate(prompts, GREEDY, use_tqdm=False) for prompts in forms]
        assert all(tokens(output) == tokens(outputs[0]) for output in outputs)

    def test_none(self, llm: LLM) -> None:
        assert llm.generate([], GREEDY, use_tqdm=False) == []

    @pytest.mark.parametrize(
        "prompts",
        [
            [5, "text"],
            ["text", 5],
            [[5, "text"]],
            [[300]],
            [[-1]],
            [[1.5]],
            [None],
            [{1: 2}],
        ],
    )
    def test_what_is_no_prompt(self, llm: LLM, prompts: Any) -> None:
        with pytest.raises(InvalidRequest, match=r"text, or a list of token ids in \[0, 300\)"):
            llm.generate(prompts, GREEDY, use_tqdm=False)

    @pytest.mark.parametrize("prompts", [[[]], [""], ["x", ""]])
    def test_an_empty_prompt(self, llm: LLM, prompts: list[str]) -> None:
        with pytest.raises(InvalidRequest, match="no tokens"):
            llm.generate(prompts, GREEDY, use_tqdm=False)

    def test_nothing_runs_if_one_prompt_is_refused(self, llm: LLM) -> None:
        prompts: list[str | list[int]] = ["x", [1] * 600]
        with pytest.raises(ContextLengthExceeded, match="limit is 512"):
            llm.generate(prompts, GREEDY, use_tqdm=False)

    def test_parameters_for_each_prompt(self, llm: LLM) -> None:
        with pytest.raises(InvalidRequest, match="2 prompts and 1 sampling params"):
            llm.generate(["x", "y"], [GREEDY], use_tqdm=False)

    def test_a_token_outside_the_vocabulary_in_the_parameters(self, llm: LLM) -> None:
        params = SamplingParams(logit_bias={300: 1.0})
        with pytest.raises(InvalidRequest, match="logit_bias names a token outside"):
            llm.generate("x", params, use_tqdm=False)


def test_an_interrupted_run_leaves_nothing_behind(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = llm.generate("hello", GREEDY, use_tqdm=False)
    engine = llm._engine
    steps = iter(range(3))

    def step() -> bool:
        progressed = type(engine).step(engine)
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return progressed

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "step", step)
        llm.generate(["hello", "x"], GREEDY, use_tqdm=False)
    llm.check_integrity()
    (again,) = llm.generate("hello", GREEDY, use_tqdm=False)
    assert again.outputs == expected.outputs


class TestChat:
    """Conversations."""

    def test_renders_the_template(self, llm: LLM) -> None:
        messages = [{"role": "user", "content": "hello"}]
        output = llm.chat(messages, GREEDY)
        text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        expected = llm.tokenizer.encode(text, add_special_tokens=False)
        assert output.prompt_token_ids == tuple(expected)
        assert tokens([output]) == tokens(llm.generate([expected], GREEDY, use_tqdm=False))

    def test_without_a_template(self, tmp_path: Path) -> None:
        llm = load(write_checkpoint(tmp_path))
        with pytest.raises(InvalidRequest, match="no chat template; use generate"):
            llm.chat([{"role": "user", "content": "hello"}])


class TestOptions:
    """What may be chosen, and how a mistake is told."""

    def test_unknown(self, model: Path) -> None:
        with pytest.raises(ConfigError, match=r"no option 'max_len'; options are .*max_model_len"):
            LLM(model, max_len=5)

    def test_it_has_one_rank(self, model: Path) -> None:
        message = r"tensor_parallel_size: LLM computes in this process.*twinflow serve MODEL"
        with pytest.raises(ConfigError, match=message):
            load(model, tensor_parallel_size=2)
        load(model, tensor_parallel_size=1)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"method": "ngrm"}, "'ngrm' is unknown; did you mean ngram?"),
            ({"method": "ngram", "num_spec_tokens": 3}, "did you mean num_speculative_tokens?"),
            ({"method": "ngram", "num_speculative_tokens": 20}, r"num_speculative_tokens \(20\)"),
        ],
    )
    def test_proposals_that_cannot_be(self, model: Path, given: object, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load(model, speculative_config=given, max_num_batched_tokens=1024)

    def test_max_model_len(self, model: Path) -> None:
        assert load(model, max_model_len=40).max_model_len == 40
