"""How often proposals are right: for each request, from its own history and that of all.

A level of a proposal was tried if everything before it was accepted. A request of which little is
known is thought to be like the others, and what was learned of it fades with every step: a request
that is left alone because its proposals were wrong is tried again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# What all requests together are thought to accept before anything is known, and its weight.
_PRIOR, _PRIOR_WEIGHT = 0.7, 4.0
# Weight of all others in the estimate of one.
_SHARED_WEIGHT = 2.0
# What is left of evidence after one more proposal: of all requests, and of the same one.
_SHARED_DECAY, _OWN_DECAY = 0.98, 0.9
# What is left of a request's evidence after a step without a proposal.
_STEP_DECAY = 0.99
_MOST = 0.99
_FEW = 128


@dataclass(slots=True)
class _Evidence:
    accepted: float = 0.0
    tried: float = 0.0
    step: int = 0

    def add(self, accepted: int, tried: int, decay: float) -> None:
        self.accepted = self.accepted * decay + accepted
        self.tried = self.tried * decay + tried

    def rate(self, prior: float, weight: float, fading: float = 1.0) -> float:
        seen = fading * self.tried + weight
        return min((fading * self.accepted + weight * prior) / seen, _MOST)


class Acceptance:
    """See the module."""

    def __init__(self) -> None:
        self._shared = _Evidence()
        self._own: dict[str, _Evidence] = {}
        self._prune_at = _FEW

    def note(self, request_id: str, accepted: int, depth: int, step: int) -> None:
        """A proposal was verified.

        Args:
            request_id: to whom it was made.
            accepted: levels that were right.
            depth: levels that it had, at least one.
            step: number of the step.
        """
        tried = min(accepted + 1, depth)
        self._shared.add(accepted, tried, _SHARED_DECAY)
        own = self._own.setdefault(request_id, _Evidence())
        own.add(accepted, tried, _OWN_DECAY)
        own.step = step

    def rates(self, request_ids: Iterable[str], step: int) -> list[float]:
        """The chances that a level of a request's proposal is accepted if the one before it was."""
        prior = self._shared.rate(_PRIOR, _PRIOR_WEIGHT)
        owns = map(self._own.get, request_ids)
        return [
            prior
            if own is None
            else own.rate(prior, _SHARED_WEIGHT, _STEP_DECAY ** (step - own.step))
            for own in owns
        ]

    def prune(self, request_ids: Iterable[str]) -> None:
        """Forget everybody else, now and then: most of them are over."""
        if len(self._own) < self._prune_at:
            return
        kept = set(request_ids)
        self._own = {name: own for name, own in self._own.items() if name in kept}
        self._prune_at = max(_FEW, 2 * len(self._own))
