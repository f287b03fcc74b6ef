"""How a gateway deals with its workers: how patient it is, and over what it talks."""

from dataclasses import dataclass, field

from twinflow.cluster.dispatch.turnstile import TurnstileConfig
from twinflow.workers.mutual_tls import MutualTls


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchConfig:
    """Time limits between a gateway and its workers, in seconds, and the rest.

    Attributes:
        silence_limit_s: a worker reports twice a second; one that is silent for so long is dead
            or frozen, which is noticed within a quarter more.
        describe_timeout_s: a worker that is connected to says who it is within this time.
        reconnect_s: pause between two attempts to open a session.
        gone_after_s: a worker that has been away for so long counts as gone for good: nothing is
            reported of it until it is back.
        rejoin_s: a sequence that finds no worker at all waits so long for one to come (back).
        probe_timeout_s: a probe's tokens come within this time.
        turnstile: what is let through to workers.
        probe_fresh_s: an answer to whether requests are served holds for so long.
        tls: certificates of the calls to workers; None for clear text.
    """

    silence_limit_s: float = 3.2
    describe_timeout_s: float = 5.0
    reconnect_s: float = 0.5
    gone_after_s: float = 60.0
    rejoin_s: float = 0.0
    probe_timeout_s: float = 4.0
    probe_fresh_s: float = 1.0
    turnstile: TurnstileConfig = field(default_factory=TurnstileConfig)
    tls: MutualTls | None = None
