"""A real browser without a screen: what a page looks like once its scripts have run."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_VOID = frozenset({"meta", "link", "input"})


def browser() -> str:
    """Chromium's program; skips the test where there is none."""
    for name in _NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    pytest.skip(f"needs a browser: one of {', '.join(_NAMES)}")


def rendered(url: str, profile: Path, seconds: float = 4.0) -> "Page":
    """Open an address, let its scripts run for some seconds of the page's own time, and read it.

    Args:
        url: what to open.
        profile: a folder of the test's own.
        seconds: of the page's clock, which stands still while it waits for answers.
    """
    done = subprocess.run(
        [
            browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            f"--virtual-time-budget={int(1000 * seconds)}",
            "--enable-logging=stderr",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    page = Page([line for line in done.stderr.splitlines() if ":CONSOLE" in line])
    page.feed(done.stdout)
    return page


class Page(HTMLParser):
    """A document: texts of its elements by id, rows of its tables.

    Args:
        console: what scripts and the browser have complained of.

    Attributes:
        console: the same.
        texts: of every element with an id, with that of all in it.
        tables: cells of every row by the table's id.
        widths: of bars, in the order of the document, by the table's id.
        hidden: ids of elements that are not shown.
    """

    def __init__(self, console: list[str]) -> None:
        super().__init__()
        self.console = console
        self.texts: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.widths: dict[str, list[str]] = {}
        self.hidden: set[str] = set()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = given.get("id") or ""
        if name:
            self.texts[name] = ""
            if "hidden" in given:
                self.hidden.add(name)
        if tag not in _VOID:
            self._open.append(name)
        table = next((each for each in reversed(self._open) if each in ("workers", "requests")), "")
        if tag == "tr":
            self.tables.setdefault(table, []).append([])
        if tag in ("td", "th"):
            self.tables[table][-1].append("")
        if tag == "i" and table:
            self.widths.setdefault(table, []).append(given.get("style") or "")

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        for name in self._open:
            if name:
                self.texts[name] += data
            if name in self.tables and self.tables[name][-1]:
                self.tables[name][-1][-1] += data
