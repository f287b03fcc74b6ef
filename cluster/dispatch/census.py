"""Asks all workers who they are and whether they may serve together.

KV blocks are exchanged only between workers that mean the same by them: same weights, same dtype,
same layout. That is settled here, before the first request.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from twinflow.cluster.dispatch.address import WorkerAddress
from twinflow.protos.errors import ConfigError, Unavailable
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.workers.mutual_tls import MutualTls
from twinflow.workers.rpc import PROTOCOL_VERSION, call_metadata, open_channel

_TIMEOUT_S = 10.0

# What all workers of a deployment must agree on, and how to say so.
_SHARED = {
    "protocol_version": "speak different versions of the worker protocol",
    "model_fingerprint": "have different weights, dtypes or CPU kernels",
    "kv_layout": "lay KV blocks out differently",
    "block_size": "have different block sizes",
    "vocab_size": "have different vocabularies",
}


@dataclass(frozen=True, slots=True)
class Census:
    """What the workers of a deployment have in common.

    Attributes:
        max_model_len: longest sequence that every worker can hold.
        vocab_size: tokens of the vocabulary.
        block_size: token slots of a KV block.
        dtype: dtype of weights and KV.
        reference: what one of them says about itself; those that come later must agree with it.
    """

    max_model_len: int
    vocab_size: int
    block_size: int
    dtype: str
    reference: pb.DescribeResponse


async def take_census(
    workers: Sequence[WorkerAddress], token: str, tls: MutualTls | None = None
) -> Census:
    """Ask all workers and compare their answers.

    Raises:
        Unavailable: a worker does not answer.
        ConfigError: workers cannot serve together; the message names two of them and why.
    """
    if not workers:
        raise ConfigError("a gateway needs at least one worker")
    answers = await asyncio.gather(*(_ask(worker, token, tls) for worker in workers))
    first = answers[0]
    if first.protocol_version != PROTOCOL_VERSION:
        raise ConfigError(
            f"worker {first.worker_id} speaks version {first.protocol_version} of the worker "
            f"protocol, this gateway {PROTOCOL_VERSION}: run one release of twinflow everywhere"
        )
    for other in answers[1:]:
        if problem := difference(first, other):
            raise ConfigError(problem)
    shortest = min(answers, key=lambda answer: answer.max_model_len)
    return Census(
        max_model_len=shortest.max_model_len,
        vocab_size=first.vocab_size,
        block_size=first.block_size,
        dtype=first.dtype,
        reference=shortest,
    )


def difference(one: pb.DescribeResponse, other: pb.DescribeResponse) -> str:
    """Why two workers cannot serve together, naming both; empty if they can."""
    for name, problem in _SHARED.items():
        if getattr(one, name) != getattr(other, name):
            return (
                f"workers {one.worker_id} and {other.worker_id} {problem}: give all workers the "
                "same model directory and flags"
            )
    return ""


async def _ask(worker: WorkerAddress, token: str, tls: MutualTls | None) -> pb.DescribeResponse:
    channel = open_channel(worker.address, tls)
    try:
        stub = rpc.WorkerStub(channel)
        answer: pb.DescribeResponse = await stub.Describe(
            pb.DescribeRequest(), metadata=call_metadata(token), timeout=_TIMEOUT_S
        )
    except grpc.aio.AioRpcError as error:
        raise Unavailable(
            f"worker {worker.worker_id} at {worker.address} does not answer: {error.details()}"
        ) from error
    finally:
        await channel.close()
    return answer
