"""The pages of the documentation, and the blocks of code in them."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parent.parent.parent

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
NAMED = re.compile(r"^# (?P<path>[\w/]+\.py)$")
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (?P<text>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of code; ``path`` is that of the file which its first line names."""

    page: str
    line: int
    language: str
    code: str

    @property
    def path(self) -> str | None:
        found = NAMED.match(self.code.partition("\n")[0])
        return found["path"] if found else None

    @property
    def module(self) -> str | None:
        return self.path.removesuffix(".py").replace("/", ".") if self.path else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A page, by its path in the repository."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The page without its blocks of code."""
        return FENCE.sub("", self.text)

    @property
    def blocks(self) -> list[Block]:
        return [
            Block(self.name, self.text.count("\n", 0, found.start()) + 1, found["language"], dedent(found["code"]))
            for found in FENCE.finditer(self.text)
        ]

    def blocks_of(self, *languages: str) -> list[Block]:
        return [block for block in self.blocks if block.language in languages]

    @property
    def links(self) -> list[str]:
        return [found["target"] for found in LINK.finditer(self.prose)]

    @property
    def anchors(self) -> set[str]:
        return {anchor(found["text"]) for found in HEADING.finditer(self.prose)}

    def __str__(self) -> str:
        return self.name


def anchor(heading: str) -> str:
    """The anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def pages() -> list[Page]:
    """Every page of the documentation."""
    return [Page(path) for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))]


def page(name: str) -> Page:
    """One page, by its path in the repository."""
    return Page(ROOT / name)


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head; code marks are taken off."""
    section = re.split(r"^#{1,6} ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def code(cell: str) -> str:
    """What a cell says, without its code marks."""
    return cell.strip().removeprefix("`").removesuffix("`")
