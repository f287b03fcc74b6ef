"""Builds what a worker is sent from what a front door has validated."""

from collections.abc import Sequence

from twinflow.cluster.gateway.backend import GenerationSpec
from twinflow.cluster.router.snapshot import Route
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.workers.convert import sampling_to_pb


def build_submission(
    spec: GenerationSpec,
    eos_token_ids: Sequence[int],
    *,
    route: Route,
    attempt: int = 0,
    emitted: Sequence[int] = (),
    deadline_s: float,
) -> pb.Submission:
    """A request as a worker executes it: every default filled in.

    Args:
        spec: the sequence.
        eos_token_ids: of the model.
        route: where it goes.
        attempt: grows with every submission of the sequence.
        emitted: tokens that were already delivered.
        deadline_s: time left.
    """
    params = spec.params
    submission = pb.Submission(
        request_id=spec.request_id,
        attempt=attempt,
        prompt_token_ids=spec.prompt_token_ids,
        output_token_ids=emitted,
        sampling=sampling_to_pb(params),
        max_tokens=params.max_tokens or 0,
        min_tokens=params.min_tokens,
        stop_token_ids=params.stop_token_ids,
        eos_token_ids=() if params.ignore_eos else eos_token_ids,
        priority=spec.priority,
        cache_salt=spec.cache_salt,
        deadline_ms=max(1, int(deadline_s * 1000)),
    )
    if params.logprobs is not None:
        submission.logprobs = params.logprobs
    if route.prefill is not None:
        submission.prefill.worker_id = route.prefill.worker_id
        submission.prefill.epoch = route.prefill.epoch
        submission.prefill.address = route.prefill.address
        for rank in route.prefill.ranks:
            submission.prefill.ranks.add(address=rank.address, parts=rank.parts)
    return submission
