"""What operators want of pools that size themselves, and how fast that may go. Values only."""

from dataclasses import dataclass

from twinflow.protos.errors import InvalidRequest
from twinflow.workers.role import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """What a pool is to keep to.

    Attributes:
        minimum: workers that it always has.
        maximum: workers that it never has more of.
        ttft_s: what most requests may wait for their first token; None for no objective.
        tpot_s: what most further tokens may take; None for no objective.
    """

    minimum: int
    maximum: int
    ttft_s: float | None = None
    tpot_s: float | None = None

    def __str__(self) -> str:
        objectives = [
            f"{name} {1000 * value:g} ms"
            for name, value in (("TTFT", self.ttft_s), ("TPOT", self.tpot_s))
            if value is not None
        ]
        return f"{self.minimum} to {self.maximum} workers for {' and '.join(objectives)}"

    def check(self, role: Role, largest: int) -> None:
        """Refuse what cannot be kept to.

        Args:
            role: of the pool's workers.
            largest: most workers that any pool may have.

        Raises:
            InvalidRequest: and why.
        """
        if not 1 <= self.minimum <= self.maximum <= largest:
            raise InvalidRequest(
                f"A pool that is scaled automatically has min and max with 1 <= min <= max <= "
                f"{largest}, not {self.minimum} and {self.maximum}.",
                "min",
            )
        given = {"ttft_ms": self.ttft_s, "tpot_ms": self.tpot_s}
        for name, value in given.items():
            if value is not None and not 0 < value < float("inf"):
                raise InvalidRequest(f"{name} must be above 0.", name)
        for other, name in (("decode", "ttft_ms"), ("prefill", "tpot_ms")):
            if role == other and given[name] is not None:
                raise InvalidRequest(f"{name} does not depend on {role} workers.", name)
        if self.ttft_s is None and self.tpot_s is None:
            needed = {"prefill": "ttft_ms", "decode": "tpot_ms"}.get(role, "ttft_ms or tpot_ms")
            raise InvalidRequest(f"A {role} pool needs {needed} to be scaled by.", needed[:7])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tempo:
    """How fast pools may change.

    Attributes:
        interval_s: between two decisions.
        window_s: that latencies and loads are looked at over.
        quantile: of latencies, which is held against the objective.
        calm_s: a pool shrinks to the most that it has needed for so long; longer if it regretted
            that lately.
        turns_per_hour: changes of direction that a pool makes at most in any hour; at least 2.
    """

    interval_s: float = 5.0
    window_s: float = 30.0
    quantile: float = 90.0
    calm_s: float = 90.0
    turns_per_hour: int = 20
