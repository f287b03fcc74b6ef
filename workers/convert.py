"""Between the messages of `worker.proto` and the objects of the engine.

The only place where the two shapes of a request meet. Defaults and bounds were settled by the
gateway; what arrives here incomplete is a protocol error.
"""

import sys
from collections.abc import Iterable

from twinflow.parallel.partition.control import Mode
from twinflow.protos.errors import InvalidRequest, TwinflowError, from_code
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.v1 import inference_pb2 as public
from twinflow.runtime.lanes.base import LaneFigures
from twinflow.runtime.outputs import FinishReason, PhaseTime, TokenDelta, TokenLogprobs
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.runtime.speculative.goodput.controller import GoodputFigures

_FINISH_TO_PB = {
    None: public.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: public.FINISH_REASON_STOP,
    FinishReason.LENGTH: public.FINISH_REASON_LENGTH,
    FinishReason.ABORT: public.FINISH_REASON_ABORT,
}
_FINISH_FROM_PB = {value: reason for reason, value in _FINISH_TO_PB.items()}

_SAMPLING_FIELDS = frozenset(
    {
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
    }
)


def sampling_to_pb(params: SamplingParams) -> public.SamplingParams:
    """Sampling parameters, every field set."""
    return public.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=dict(params.logit_bias),
        seed=params.seed,
    )


def params_from_pb(submission: pb.Submission) -> SamplingParams:
    """The parameters of a submission; stop strings are matched in the gateway."""
    sampling = submission.sampling
    missing = sorted(_SAMPLING_FIELDS - {field.name for field, _ in sampling.ListFields()})
    if missing:
        raise InvalidRequest(f"a submission must carry {', '.join(missing)}.", missing[0])
    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias),
        seed=sampling.seed,
        max_tokens=submission.max_tokens,
        min_tokens=submission.min_tokens,
        stop_token_ids=tuple(submission.stop_token_ids),
        ignore_eos=not submission.eos_token_ids,
        logprobs=submission.logprobs if submission.HasField("logprobs") else None,
    )


def request_from_pb(submission: pb.Submission, engine_id: str, *, hold: bool = False) -> Request:
    """The engine's request for a submission.

    Args:
        submission: as the gateway sent it.
        engine_id: the request's name within the engine.
        hold: compute the prompt for another worker.
    """
    return Request(
        request_id=engine_id,
        prompt_token_ids=list(submission.prompt_token_ids),
        output_token_ids=list(submission.output_token_ids),
        params=params_from_pb(submission),
        eos_token_ids=tuple(submission.eos_token_ids),
        priority=submission.priority,
        cache_salt=submission.cache_salt,
        fetch_from=submission if submission.HasField("prefill") and not hold else None,
        hold=hold,
        probe=submission.probe,
    )


def logprobs_to_pb(entries: Iterable[TokenLogprobs]) -> list[pb.PositionLogprobs]:
    """Log probabilities, one message per position."""
    return [
        pb.PositionLogprobs(
            sampled=pb.Logprob(token_id=entry.token_id, logprob=entry.logprob),
            top=[pb.Logprob(token_id=token, logprob=value) for token, value in entry.top],
        )
        for entry in entries
    ]


def logprobs_from_pb(entries: Iterable[pb.PositionLogprobs]) -> tuple[TokenLogprobs, ...]:
    """The reverse of `logprobs_to_pb`."""
    return tuple(
        TokenLogprobs(
            entry.sampled.token_id,
            entry.sampled.logprob,
            tuple((top.token_id, top.logprob) for top in entry.top),
        )
        for entry in entries
    )


def phases_from_pb(phases: Iterable[pb.Phase]) -> tuple[PhaseTime, ...]:
    """Phases of a timeline."""
    # The same few names in thousands of timelines that are kept.
    return tuple(PhaseTime(sys.intern(phase.name), phase.seconds) for phase in phases)


def output_to_pb(request_id: str, attempt: int, delta: TokenDelta) -> pb.RequestOutput:
    """New tokens of a request."""
    output = pb.RequestOutput(
        request_id=request_id,
        attempt=attempt,
        token_ids=delta.token_ids,
        logprobs=logprobs_to_pb(delta.logprobs),
        finish_reason=_FINISH_TO_PB[delta.finish_reason],
        cached_tokens=delta.cached_tokens,
        phases=[pb.Phase(name=phase.name, seconds=phase.seconds) for phase in delta.phases],
    )
    if delta.stop_token_id is not None:
        output.stop_token_id = delta.stop_token_id
    if delta.speculation is not None:
        output.speculation.CopyFrom(speculation_to_pb(delta.speculation))
    return output


def failure_to_pb(request_id: str, attempt: int, error: TwinflowError) -> pb.RequestOutput:
    """The end of a request that failed."""
    return pb.RequestOutput(request_id=request_id, attempt=attempt, failure=failure_of(error))


def failure_of(error: TwinflowError) -> pb.Failure:
    """An error as it crosses a process boundary."""
    return pb.Failure(code=error.code, message=error.message)


def delta_from_pb(output: pb.RequestOutput) -> TokenDelta:
    """New tokens of a request; raises the error that an output reports."""
    if output.HasField("failure"):
        raise from_code(output.failure.code, output.failure.message)
    return TokenDelta(
        token_ids=tuple(output.token_ids),
        logprobs=logprobs_from_pb(output.logprobs),
        finish_reason=_FINISH_FROM_PB[output.finish_reason],
        stop_token_id=output.stop_token_id if output.HasField("stop_token_id") else None,
        cached_tokens=output.cached_tokens,
        phases=phases_from_pb(output.phases),
        speculation=_speculation(output.speculation) if output.HasField("speculation") else None,
    )


def speculation_to_pb(account: SpeculationAccount) -> pb.SpeculationStats:
    """What became of proposed tokens."""
    return pb.SpeculationStats(
        drafts=account.drafts,
        draft_tokens=account.draft_tokens,
        accepted_tokens=account.accepted_tokens,
        accepted_at=account.accepted_at,
    )


def _speculation(stats: pb.SpeculationStats) -> SpeculationAccount:
    return SpeculationAccount(
        stats.drafts, stats.draft_tokens, stats.accepted_tokens, list(stats.accepted_at)
    )


def goodput_to_pb(figures: GoodputFigures) -> pb.GoodputStats:
    """How often proposing was worth it."""
    return pb.GoodputStats(
        speculating_steps=figures.speculating,
        silent_steps=figures.silent,
        probe_steps=figures.probes,
    )


def lane_stats_to_pb(figures: LaneFigures) -> pb.LaneStats:
    """What two lanes have done."""
    layout = figures.layout
    return pb.LaneStats(
        backend=figures.backend,
        prefill_processors=layout.prefill if layout else 0,
        decode_processors=layout.decode if layout else 0,
        switches=figures.switches,
        prefill_steps=figures.steps[Mode.PREFILL],
        decode_steps=figures.steps[Mode.DECODE],
        prefill_seconds=figures.seconds[Mode.PREFILL],
        decode_seconds=figures.seconds[Mode.DECODE],
        both_seconds=figures.both_seconds,
        failure=figures.failure,
    )
