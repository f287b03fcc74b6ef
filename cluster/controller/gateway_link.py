"""The way to a gateway: `GatewayLink` over gRPC. One call at a time, each with a deadline."""

import grpc

from twinflow.protos.errors import DeadlineExceeded, TwinflowError, Unavailable
from twinflow.protos.twinflow.internal.v1 import gateway_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import gateway_pb2_grpc as rpc
from twinflow.workers.mutual_tls import MutualTls
from twinflow.workers.rpc import call_metadata, open_blocking_channel


class GrpcGatewayLink:
    """Calls one gateway.

    Args:
        address: of its door for the controller.
        token: the deployment's secret.
        tls: certificates; None for clear text.
    """

    def __init__(self, address: str, token: str, tls: MutualTls | None = None) -> None:
        self._address = address
        self._metadata = call_metadata(token)
        self._tls = tls
        self._open()

    def _open(self) -> None:
        self._certificates = None if self._tls is None else self._tls.certificates
        self._channel = open_blocking_channel(self._address, self._tls)
        self._stub = rpc.GatewayStub(self._channel)

    def sync(self, request: pb.SyncRequest, timeout_s: float) -> pb.SyncResponse:
        """See `GatewayLink.sync`."""
        if self._tls is not None and self._tls.certificates is not self._certificates:
            self.close()
            self._open()
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
        return Unavailable(
            f"the gateway at {self._address}: {code.name.lower()}: {error.details()}"
        )
