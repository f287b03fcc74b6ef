"""The first token of a prompt that another worker computes."""

from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.outputs import SampledToken
from twinflow.workers.convert import logprobs_from_pb, phases_from_pb
from twinflow.workers.engine_loop import EngineLoop


class FirstToken:
    """What the conversation between the two ranks 0 is about besides KV.

    Args:
        loop: of the engine that waits for it.
        engine_id: the request.
        submission: the request, as the gateway sent it.

    Attributes:
        submission: likewise.
        known: whether the engine has the token; an earlier transfer may have brought it, and it is
            always the same.
    """

    def __init__(self, loop: EngineLoop, engine_id: str, submission: pb.Submission) -> None:
        self._loop = loop
        self._engine_id = engine_id
        self.submission = submission
        self.known = False

    def take(self, output: pb.RequestOutput) -> None:
        """Tell the engine; `output` has exactly one token."""
        self.known = True
        logprobs = logprobs_from_pb(output.logprobs)
        sampled = SampledToken(output.token_ids[0], logprobs[0] if logprobs else None)
        phases, cached = phases_from_pb(output.phases), output.cached_tokens
        self._loop.post(
            lambda engine: engine.receive_first_token(self._engine_id, sampled, phases, cached)
        )
