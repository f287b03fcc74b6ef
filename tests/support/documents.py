"""Markdown documents, taken apart as far as tests of the documentation need it."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)((?:    .*\n)+)")
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """One file.

    Attributes:
        path: where it is.
        text: all of it.
        prose: the text without code blocks.
    """

    path: Path
    text: str
    prose: str

    @classmethod
    def read(cls, path: Path) -> "Document":
        text = path.read_text(encoding="utf-8")
        return cls(path, text, _FENCE.sub("", text))

    def blocks(self, language: str) -> list[str]:
        """Fenced code in a language."""
        return [code for found, code in _FENCE.findall(self.text) if found == language]

    def spans(self) -> list[str]:
        """Inline code."""
        return _SPAN.findall(self.prose)

    def links(self) -> list[str]:
        """Targets of links."""
        return _LINK.findall(self.prose)

    def anchors(self) -> set[str]:
        """What links may point to within the file."""
        return {_slug(heading) for heading in _HEADING.findall(self.prose)}

    def commands(self, program: str) -> Iterator[list[str]]:
        """Words of every command of `program`, the program and what comes before it left out."""
        code = "".join([*self.blocks("sh"), *_INDENTED.findall(self.prose)])
        lines = [*code.replace("\\\n", " ").splitlines(), *self.spans()]
        for line in lines:
            if not re.search(rf"(^|\s){program}\s", line):
                continue
            words = shlex.split(line, comments=True)
            if program in words and _is_command(words[: words.index(program)]):
                yield [word for word in words[words.index(program) + 1 :] if word != "&"]

    def tables(self) -> list[list[list[str]]]:
        """Every table: its rows, the first one being the heading, each a list of cells."""
        found: list[list[list[str]]] = []
        previous = ""
        for line in self.prose.splitlines():
            if line.startswith("|"):
                if not previous.startswith("|"):
                    found.append([])
                cells = [cell.strip() for cell in line.strip("|").split("|")]
                if set(line) - set("|-: "):
                    found[-1].append(cells)
            previous = line
        return found

    def table(self, *heading: str) -> list[list[str]]:
        """The rows of the tables with a heading, in order, without the heading itself."""
        rows = [row for table in self.tables() if table[0] == list(heading) for row in table[1:]]
        assert rows, f"{self.path.name} has no table {heading}"
        return rows


def code_in(text: str) -> list[str]:
    """The inline code of a piece of text."""
    return _SPAN.findall(text)


def _is_command(before: list[str]) -> bool:
    """Whether words before a program only prepare it: variables, or pinning to a core."""
    return all("=" in word or word in ("taskset", "-c", "0", "1") for word in before)


def _slug(heading: str) -> str:
    """The anchor that code hosts make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
