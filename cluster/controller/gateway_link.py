"""The way to a gateway: `GatewayLink` over gRPC. One call at a time, each with a deadline."""

import grpc

from twinflow.protos.errors import DeadlineExceeded, TwinflowError, Unavailable
from twinflow.protos.twinflow.internal.v1 import gateway_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import gateway_pb2_grpc as rpc
from twinflow.workers.rpc import call_metadata, open_blocking_channel


class GrpcGatewayLink:
    """Calls one gateway.

    Args:
        address: of its door for the controller.
        token: the deployment's secret.
    """

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._metadata = call_metadata(token)
        self._channel = open_blocking_channel(address)
        self._stub = rpc.GatewayStub(self._channel)

    def sync(self, request: pb.SyncRequest, timeout_s: float) -> pb.SyncResponse:
        """See `GatewayLink.sync`."""
        try:
            response: pb.SyncResponse = self._stub.Sync(
                request, metadata=self._metadata, timeout=timeout_s
            )
        except grpc.RpcError as error:
            raise self._error(error, timeout_s) from error
        return response

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _error(self, error: grpc.RpcError, timeout_s: float) -> TwinflowError:
        # Whoever raises RpcError is a Call too.
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"the gateway at {self._address} did not take the table within {timeout_s:g} s"
            )
        return Unavailable(f"the gateway at {self._address}: {code.name.lower()}")
