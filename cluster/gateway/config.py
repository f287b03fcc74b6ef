"""Configuration of one gateway process, and how it travels to it."""

from pathlib import Path

import msgspec

from twinflow.runtime.calibration.report import QualityRow


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a gateway needs to know before it starts.

    Attributes:
        model: directory of the checkpoint, for tokenizer and chat template.
        names: names that requests may use, the one that answers carry first.
        max_key_queued_requests: sequences of one API key that wait; None for no such bound.
        max_key_queued_tokens: their prompt tokens; likewise.
        fair_tokens: prompt tokens with workers before keys take turns; None for no turns.
        longest_wait_s: longest time to a first token that is promised; None for no promise.
        host: address that HTTP and gRPC listen on.
        port: HTTP port; 0 takes a free one.
        grpc_port: gRPC port; 0 takes a free one.
        api_keys: keys of which requests must carry one; empty for none.
        admin_tokens: tokens of which operators' calls must carry one; empty refuses all of them.
        token: the deployment's secret.
        tls: directory of the certificates of internal calls; None for clear text.
        max_model_len: longest sequence that the operator asked for; None for what the model allows.
        max_queued_requests: sequences that wait for their first token.
        max_queued_tokens: their prompt tokens.
        loss: measured of the attention that workers approximate; None if they do not, or if nobody
            has measured it.
        seed: draws the seeds of requests without one; None for unpredictable ones.
    """

    model: Path
    names: tuple[str, ...]
    token: str
    max_queued_requests: int
    max_queued_tokens: int
    max_key_queued_requests: int | None = None
    max_key_queued_tokens: int | None = None
    fair_tokens: int | None = None
    longest_wait_s: float | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 50051
    api_keys: tuple[str, ...] = ()
    admin_tokens: tuple[str, ...] = ()
    max_model_len: int | None = None
    loss: QualityRow | None = None
    seed: int | None = None
    tls: Path | None = None

    def encode(self) -> bytes:
        """As JSON, on one line."""
        return msgspec.json.encode(self, enc_hook=str)

    @classmethod
    def decode(cls, data: bytes) -> "GatewayConfig":
        """From JSON; unknown or ill-typed fields raise msgspec.ValidationError."""
        return msgspec.json.decode(data, type=cls, dec_hook=lambda kind, value: kind(value))
