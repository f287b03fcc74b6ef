"""The methods of `twinflow.v1.Inference`."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from twinflow.cluster.gateway.generation import collect
from twinflow.cluster.gateway.grpc_door.endpoint import Endpoint, Single
from twinflow.cluster.gateway.grpc_door.requests import (
    read_detokenize,
    read_generation,
    read_tokenize,
)
from twinflow.cluster.gateway.grpc_door.responses import ResponseWriter, model_info
from twinflow.cluster.gateway.text_pipeline import Call, TextPipeline
from twinflow.cluster.gateway.validation import GenerationRequest
from twinflow.protos.twinflow.v1 import inference_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name


class InferenceService:
    """Reads requests, runs them, writes answers.

    Args:
        pipeline: runs them.
    """

    def __init__(self, pipeline: TextPipeline) -> None:
        self._pipeline = pipeline

    async def generate(self, message: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        """`Generate`."""
        request = read_generation(message, self._pipeline.model)
        async with self._pipeline.open(request, call) as generation:
            completions = await collect(generation)
            return self._writer(request, call).response(generation, completions)

    async def generate_stream(
        self, message: pb.GenerateStreamRequest, call: Call
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """`GenerateStream`."""
        request = read_generation(message, self._pipeline.model)
        writer = self._writer(request, call)
        async with self._pipeline.open(request, call) as generation:
            async for delta in generation:
                chunk = writer.chunk(delta)
                if chunk is not None:
                    yield chunk
            yield writer.complete(generation)

    async def tokenize(self, message: pb.TokenizeRequest, _call: Call) -> pb.TokenizeResponse:
        """`Tokenize`."""
        served = self._pipeline.model
        token_ids = await self._pipeline.tokenize(read_tokenize(message, served))
        return pb.TokenizeResponse(token_ids=token_ids, max_model_len=served.max_model_len)

    async def detokenize(self, message: pb.DetokenizeRequest, _call: Call) -> pb.DetokenizeResponse:
        """`Detokenize`."""
        request = read_detokenize(message, self._pipeline.model)
        return pb.DetokenizeResponse(text=await self._pipeline.detokenize(request))

    async def get_model_info(
        self, _message: pb.GetModelInfoRequest, _call: Call
    ) -> pb.GetModelInfoResponse:
        """`GetModelInfo`."""
        return model_info(self._pipeline.model)

    def endpoints(self, single: Single) -> Mapping[str, Endpoint[Any, Any]]:
        """The methods of the service, by path."""
        return {
            f"/{SERVICE}/Generate": single.unary(pb.GenerateRequest, self.generate),
            f"/{SERVICE}/GenerateStream": single.server_stream(
                pb.GenerateStreamRequest, self.generate_stream
            ),
            f"/{SERVICE}/Tokenize": single.unary(pb.TokenizeRequest, self.tokenize),
            f"/{SERVICE}/Detokenize": single.unary(pb.DetokenizeRequest, self.detokenize),
            f"/{SERVICE}/GetModelInfo": single.unary(pb.GetModelInfoRequest, self.get_model_info),
        }

    def _writer(self, request: GenerationRequest, call: Call) -> ResponseWriter:
        tokenizer = self._pipeline.codec.tokenizer
        return ResponseWriter(call.request_id, request.options, tokenizer)
