"""What the methods of a client do, apart from waiting.

An operation is a generator: it yields the calls it needs made, is sent their responses (or thrown
their errors) and returns its result. `Client` drives it blocking and `AsyncClient` awaiting, so
that neither has logic of its own.
"""

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from grpc_health.v1 import health_pb2

from twinflow.cluster.client import session as rpcs
from twinflow.cluster.client.request import (
    CallOptions,
    Generation,
    Source,
    detokenize_request,
    tokenize_request,
)
from twinflow.cluster.client.response import (
    ServedModel,
    request_output,
    served_model,
)
from twinflow.cluster.client.session import Ask
from twinflow.protos.errors import Unavailable
from twinflow.protos.twinflow.v1 import inference_pb2 as pb
from twinflow.runtime.outputs import RequestOutput

ResultT = TypeVar("ResultT")


Operation: TypeAlias = Generator[Ask[Any, Any], Any, ResultT]


class Operations:
    """The operations of one client, which remembers the name of the model."""

    def __init__(self) -> None:
        self._model: str | None = None

    def generate(self, wanted: Generation) -> Operation[RequestOutput]:
        """Generate, all at once."""
        message = pb.GenerateRequest(input=wanted.input((yield from self._model_of(wanted))))
        response = yield Ask(rpcs.GENERATE, message, wanted.options.timeout_s)
        return request_output(response, wanted.source.prompt)

    def start_stream(
        self, wanted: Generation
    ) -> Operation[Ask[pb.GenerateStreamRequest, pb.GenerateStreamResponse]]:
        """The call whose responses are the stream."""
        model = yield from self._model_of(wanted)
        message = pb.GenerateStreamRequest(input=wanted.input(model))
        return Ask(rpcs.GENERATE_STREAM, message, wanted.options.timeout_s)

    def tokenize(
        self, source: Source, add_special_tokens: bool | None, options: CallOptions | None
    ) -> Operation[tuple[int, ...]]:
        """The tokens of a text or a conversation."""
        options = options or CallOptions()
        message = tokenize_request(source, options.model, add_special_tokens)
        response = yield Ask(rpcs.TOKENIZE, message, options.timeout_s)
        return tuple(response.token_ids)

    def detokenize(self, token_ids: Sequence[int], options: CallOptions | None) -> Operation[str]:
        """The text of tokens."""
        options = options or CallOptions()
        message = detokenize_request(token_ids, options.model)
        response = yield Ask(rpcs.DETOKENIZE, message, options.timeout_s)
        return str(response.text)

    def model_info(self, timeout_s: float | None) -> Operation[ServedModel]:
        """What is served."""
        response = yield Ask(rpcs.GET_MODEL_INFO, pb.GetModelInfoRequest(), timeout_s)
        return served_model(response)

    def ready(self, timeout_s: float | None) -> Operation[bool]:
        """Whether a request sent now would be served."""
        message = health_pb2.HealthCheckRequest(service=rpcs.SERVICE)
        try:
            response = yield Ask(rpcs.HEALTH_CHECK, message, timeout_s)
        except Unavailable:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def _model_of(self, wanted: Generation) -> Operation[str]:
        if wanted.options.model is not None:
            return wanted.options.model
        if self._model is None:
            self._model = (yield from self.model_info(wanted.options.timeout_s)).model
        return self._model
