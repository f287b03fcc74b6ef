"""Orders of prompts by name."""

from collections.abc import Callable

from twinflow.protos.errors import ConfigError
from twinflow.runtime.schedulers.orders.base import PrefillOrder
from twinflow.runtime.schedulers.orders.fcfs import FirstComeFirstServed
from twinflow.runtime.schedulers.orders.spf import ShortestPrefillFirst

# Where no objective is given, prompts age as if they were to begin within so many seconds.
_USUAL_TTFT_OBJECTIVE_S = 5.0

# From a TTFT objective in seconds, if there is one, to an order.
OrderBuilder = Callable[[float | None], PrefillOrder]

_ORDERS: dict[str, OrderBuilder] = {}


def register_order(name: str, build: OrderBuilder) -> None:
    """Make an order available under a name; a name can be taken only once."""
    if name in _ORDERS:
        raise ValueError(f"a prefill order named {name!r} is already registered")
    _ORDERS[name] = build


def create_order(name: str, ttft_objective: float | None) -> PrefillOrder:
    """The order with this name.

    Raises:
        ConfigError: there is none.
    """
    build = _ORDERS.get(name)
    if build is None:
        raise ConfigError(f"--prefill-order {name}: unknown; choose one of {sorted(_ORDERS)}")
    return build(ttft_objective)


register_order("fcfs", lambda _: FirstComeFirstServed())
register_order("spf", lambda ttft: ShortestPrefillFirst(ttft or _USUAL_TTFT_OBJECTIVE_S))
