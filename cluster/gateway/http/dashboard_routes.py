"""The page behind `/dashboard`, and the one thing it shows that no other route tells.

The page is static and open to everybody; what it shows it fetches with its reader's API key from
`/metrics`, `/server_info`, `/ready` and `/dashboard/requests`. It loads nothing from elsewhere and
runs no inline script, which its headers make browsers enforce.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
from fastapi import Request
from fastapi.responses import Response

from twinflow.cluster.dispatch.history import Story
from twinflow.cluster.gateway.http.dependencies import HttpDependencies

_FOLDER = Path(__file__).parent / "dashboard"
# The files of the page; their paths can be read without a key, as they tell nothing.
_FILES = {
    "/dashboard": "index.html",
    **{f"/dashboard/{name}": name for name in ("page.css", "page.js", "metrics.js", "drawing.js")},
}
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
PAGE_PATHS = frozenset(_FILES)
REQUESTS_PATH = "/dashboard/requests"
# Requests that one answer tells of.
_SHOWN = 40
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; form-action 'self'; "
        "style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Stay:
    """A request's stay on a pair of workers; seconds since it was first sent to one.

    Attributes:
        prefill: worker that computes its prompt; empty if `decode` does.
        decode: worker that generates.
        began_s: when it was sent there.
        ended_s: when it left; None if it has not.
        outcome: why it left; empty while it is there.
    """

    prefill: str
    decode: str
    began_s: float
    ended_s: float | None
    outcome: str


@dataclass(frozen=True, slots=True)
class RequestStory:
    """One sequence, as the page shows it.

    Attributes:
        id: of the gateway.
        state: running, finished, aborted or failed.
        age_s: since it was first sent to a worker.
        prompt_tokens: of its prompt.
        output_tokens: so far.
        first_token_s: after what time its first token came; None if none has.
        attempts: its stays, the latest last.
        phases: name and seconds, where the time of the latest stay went on the workers.
    """

    id: str
    state: str
    age_s: float
    prompt_tokens: int
    output_tokens: int
    first_token_s: float | None
    attempts: tuple[Stay, ...]
    phases: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, story: Story, now: float) -> "RequestStory":
        """Of what the dispatcher remembers."""
        began = story.began
        return cls(
            id=story.sequence_id,
            state=story.state,
            age_s=now - began,
            prompt_tokens=story.prompt_tokens,
            output_tokens=story.output_tokens,
            first_token_s=None if story.first_token is None else story.first_token - began,
            attempts=tuple(
                Stay(
                    prefill=attempt.prefill,
                    decode=attempt.decode,
                    began_s=attempt.began - began,
                    ended_s=None if attempt.ended is None else attempt.ended - began,
                    outcome=attempt.outcome,
                )
                for attempt in story.attempts
            ),
            phases=tuple((phase.name, phase.seconds) for phase in story.phases),
        )


class DashboardRoutes:
    """Files of the page, and the latest requests.

    Args:
        dependencies: of the application.
    """

    def __init__(self, dependencies: HttpDependencies) -> None:
        self._history = dependencies.history
        self._files = {path: (_FOLDER / name).read_bytes() for path, name in _FILES.items()}

    async def file(self, request: Request) -> Response:
        """The page, or one of its parts."""
        path = request.url.path
        media_type = _TYPES[Path(_FILES[path]).suffix]
        return Response(self._files[path], headers=_HEADERS, media_type=media_type)

    async def requests(self) -> Response:
        """The latest requests, the newest first."""
        history = self._history()
        latest = () if history is None else history.latest(_SHOWN)
        told = [RequestStory.of(story, history.now) for story in latest] if history else []
        return Response(msgspec.json.encode({"requests": told}), media_type="application/json")
