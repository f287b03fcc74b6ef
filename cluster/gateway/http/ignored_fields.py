"""Fields of a body that nobody knows: ignored, and said to be.

Clients newer than the server send fields that it does not know, and OpenAI's clients expect them to
be ignored. A misspelt field looks the same. So every answer names what was ignored, and the log
does now and then.
"""

import re
from collections.abc import Callable, Mapping

import structlog

from twinflow.cluster.gateway.validation.strict import StrictModel

HEADER = "x-twinflow-ignored-fields"
_MAX_NAMES = 16
# What a header and a line of a log may show of a caller's own words.
_PRESENTABLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LOG_INTERVAL_S = 60.0


class IgnoredFields:
    """Names unknown fields.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logged_at = float("-inf")

    def headers(
        self, document: object, fields: type[StrictModel], refused: Mapping[str, object]
    ) -> dict[str, str]:
        """The headers of the answer to a body; none if everything in it is known.

        Args:
            document: the body.
            fields: what it may have.
            refused: what is known, and refused unless it asks for nothing.
        """
        if not isinstance(document, dict):
            return {}
        unknown = document.keys() - fields.model_fields.keys() - refused.keys()
        names = sorted(name for name in unknown if _PRESENTABLE.fullmatch(name))[:_MAX_NAMES]
        if not names:
            return {}
        self._log(names)
        return {HEADER: ",".join(names)}

    def _log(self, names: list[str]) -> None:
        now = self._clock()
        if now - self._logged_at < _LOG_INTERVAL_S:
            return
        self._logged_at = now
        structlog.get_logger().warning("unknown fields were ignored", fields=names)
