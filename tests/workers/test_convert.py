"""A request and its outputs are the same at both ends of the wire."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinflow.cluster.dispatch.submission import build_submission
from twinflow.cluster.gateway.backend import GenerationSpec
from twinflow.cluster.router.snapshot import Route, WorkerView
from twinflow.protos.errors import (
    EngineError,
    HandoffError,
    InvalidRequest,
    ServerError,
    TwinflowError,
    Unavailable,
    WorkerLost,
    subclasses_by_code,
)
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.outputs import FinishReason, PhaseTime, TokenDelta, TokenLogprobs
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.workers.convert import (
    delta_from_pb,
    failure_to_pb,
    output_to_pb,
    params_from_pb,
    request_from_pb,
)
from twinflow.workers.role import ROLE_NAMES, ROLES

EOS = (7, 8)
ALONE = Route(WorkerView(worker_id="mixed-0"))
PAIR = Route(WorkerView(worker_id="d"), WorkerView(worker_id="p", epoch=4, address="host:1"))


def submit(params: SamplingParams, *, route: Route = ALONE, **changes: Any) -> pb.Submission:
    """What a worker is sent, as it arrives."""
    spec = GenerationSpec("id", (1, 2, 3), params, priority=-5, cache_salt="salt")
    submission = build_submission(spec, EOS, route=route, deadline_s=1.5, **changes)
    return pb.Submission.FromString(submission.SerializeToString())


tokens = st.integers(0, 2**31 - 1)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    top_k=st.integers(-1, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0, 2, exclude_min=True),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100), max_size=3),
    seed=st.integers(0, 2**64 - 1),
    max_tokens=st.integers(10, 2**31 - 1),
    min_tokens=st.integers(0, 10),
    stop_token_ids=st.lists(tokens, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
)


@given(params=params)
def test_sampling_parameters_arrive_exactly(params: SamplingParams) -> None:
    """Not a bit is lost: a served request has the tokens that the same one has offline."""
    assert params_from_pb(submit(params)) == params


class TestRequest:
    """A submission as an engine sees it."""

    PARAMS = SamplingParams(seed=1, max_tokens=9, stop=("x",), stop_token_ids=(4,))

    def test_a_fresh_one(self) -> None:
        request = request_from_pb(submit(self.PARAMS), "id/0")
        assert request.request_id == "id/0"
        assert (list(request.prompt_token_ids), request.output_token_ids) == ([1, 2, 3], [])
        assert (request.priority, request.cache_salt) == (-5, "salt")
        assert request.ending_token_ids == {4, 7, 8}
        assert (request.fetch, request.hold, request.probe) == (False, False, False)
        # Stop strings are the gateway's business.
        assert request.params.stop == ()

    def test_one_that_goes_on(self) -> None:
        submission = submit(self.PARAMS, attempt=1, emitted=[50, 60])
        request = request_from_pb(submission, "id/1")
        assert request.output_token_ids == [50, 60]
        assert (request.num_tokens, request.max_total_tokens) == (5, 12)

    def test_one_whose_prompt_another_worker_computes(self) -> None:
        submission = submit(self.PARAMS, route=PAIR)
        peer = submission.prefill
        assert (peer.worker_id, peer.epoch, peer.address) == ("p", 4, "host:1")
        assert request_from_pb(submission, "id/0").fetch
        held = request_from_pb(submission, "id/0", hold=True)
        assert (held.fetch, held.hold) == (False, True)

    def test_end_of_sequence_tokens_are_not_sent_to_be_ignored(self) -> None:
        params = SamplingParams(seed=1, ignore_eos=True)
        submission = submit(params)
        assert list(submission.eos_token_ids) == []
        assert request_from_pb(submission, "id/0").ending_token_ids == frozenset()

    @pytest.mark.parametrize("deadline_s", [-1.0, 0.0, 0.0001])
    def test_a_deadline_is_never_nothing(self, deadline_s: float) -> None:
        spec = GenerationSpec("id", (1,), self.PARAMS)
        assert build_submission(spec, EOS, route=ALONE, deadline_s=deadline_s).deadline_ms == 1

    @pytest.mark.parametrize(
        ("damage", "param"),
        [
            (lambda s: s.sampling.ClearField("seed"), "seed"),
            (lambda s: s.ClearField("sampling"), "frequency_penalty"),
            (lambda s: s.sampling.ClearField("temperature"), "temperature"),
            (lambda s: s.sampling.ClearField("top_k"), "top_k"),
            (lambda s: s.sampling.ClearField("repetition_penalty"), "repetition_penalty"),
            (lambda s: s.ClearField("max_tokens"), "max_tokens"),
        ],
    )
    def test_an_incomplete_submission(self, damage: Any, param: str) -> None:
        submission = submit(self.PARAMS)
        damage(submission)
        with pytest.raises(InvalidRequest) as refused:
            request_from_pb(submission, "id/0")
        assert refused.value.param == param


counts = st.integers(0, 2**40)
floats = st.floats(-100, 0, width=32)
entries = st.builds(
    TokenLogprobs,
    token_id=tokens,
    logprob=floats,
    top=st.lists(st.tuples(tokens, floats), max_size=3).map(tuple),
)
deltas = st.builds(
    TokenDelta,
    token_ids=st.lists(tokens, max_size=3).map(tuple),
    logprobs=st.lists(entries, max_size=3).map(tuple),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    stop_token_id=st.none() | tokens,
    cached_tokens=st.integers(0, 2**31),
    phases=st.lists(
        st.builds(PhaseTime, st.sampled_from(["queue", "prefill"]), st.floats(0, 1e6)), max_size=3
    ).map(tuple),
    speculation=st.none()
    | st.builds(
        SpeculationAccount,
        counts,
        counts,
        counts,
        st.lists(counts, max_size=3),
    ),
)


@given(delta=deltas)
def test_tokens_arrive_as_they_were_sent(delta: TokenDelta) -> None:
    output = output_to_pb("id", 3, delta)
    assert (output.request_id, output.attempt) == ("id", 3)
    assert delta_from_pb(pb.RequestOutput.FromString(output.SerializeToString())) == delta


def test_an_impossible_token_has_no_log_probability() -> None:
    delta = TokenDelta((1,), (TokenLogprobs(1, -math.inf),))
    assert delta_from_pb(output_to_pb("id", 0, delta)) == delta


class TestFailure:
    """An error that a worker reports is the error that the gateway raises."""

    @pytest.mark.parametrize(
        "error",
        [
            EngineError("a"),
            HandoffError("b"),
            InvalidRequest("c", "prompt"),
            ServerError("d"),
            Unavailable("e"),
            WorkerLost("f"),
        ],
    )
    def test_keeps_its_class_and_message(self, error: TwinflowError) -> None:
        with pytest.raises(type(error), match=error.message) as raised:
            delta_from_pb(failure_to_pb("id", 0, error))
        assert type(raised.value) is type(error)

    def test_every_error_that_is_raised_can_be_reported(self) -> None:
        for code, kind in subclasses_by_code().items():
            output = pb.RequestOutput(failure=pb.Failure(code=code, message="why"))
            with pytest.raises(kind, match="why"):
                delta_from_pb(output)

    def test_a_code_of_another_release(self) -> None:
        output = pb.RequestOutput(failure=pb.Failure(code="melted", message="why"))
        with pytest.raises(ServerError, match="why"):
            delta_from_pb(output)


def test_every_role_has_a_name() -> None:
    assert {ROLES[name] for name in ROLES} == set(pb.Role.values()) - {pb.ROLE_UNSPECIFIED}
    assert {ROLE_NAMES[value]: value for value in ROLE_NAMES} == ROLES


def test_a_request_owns_its_tokens() -> None:
    """The engine appends to lists of its own, not to the message."""
    submission = submit(TestRequest.PARAMS, emitted=[5])
    request: Request = request_from_pb(submission, "id/0")
    request.output_token_ids.append(6)
    assert list(submission.output_token_ids) == [5]
