"""The pipeline over the real tokenizer and detokeniser instead of bytes."""

from prometheus_client import CollectorRegistry
from tests.support.fake_backend import EOS, Behaviour, FakeBackend
from tests.support.tokenizers import byte_level_tokenizer

from twinflow.cluster.gateway.generation import collect
from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.text_codec import ModelTextCodec
from twinflow.cluster.gateway.text_pipeline import Call, TextPipeline
from twinflow.cluster.gateway.validation import RequestOptions, TextPrompt, build_request
from twinflow.runtime.outputs import CompletionOutput
from twinflow.runtime.text.tokenizer import Tokenizer

TEXT = "Grüße aus 東京 👩🏽‍🚀, END of it"


async def answer(**sampling: object) -> CompletionOutput:
    tokenizer = Tokenizer(byte_level_tokenizer())
    tokens = tokenizer.encode(TEXT)
    assert EOS not in tokens
    backend = FakeBackend(Behaviour(reply=lambda spec: tokens))
    metrics = GatewayMetrics(CollectorRegistry(), "tiny")
    pipeline = TextPipeline(backend, ModelTextCodec(tokenizer), metrics, clock=lambda: 0.0)
    params = {"max_tokens": 100, **sampling}
    request = build_request(backend.model, "tiny", (TextPrompt(TEXT),), params, RequestOptions())
    async with pipeline.open(request, Call("id", 0.0)) as generation:
        (output,) = await collect(generation)
    assert list(backend.specs[0].prompt_token_ids) == tokens
    backend.check_integrity()
    return output


async def test_text_comes_back() -> None:
    output = await answer()
    assert (output.text, output.finish_reason.value, output.stop_reason) == (TEXT, "stop", None)


async def test_stop_string_across_tokens() -> None:
    output = await answer(stop=("END",))
    assert output.text == TEXT.partition("END")[0]
    assert output.stop_reason == "END"
