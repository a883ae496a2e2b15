"""Reading a traceback twice: the application's own frames, and all of them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_FRAME: Final = re.compile(r'^  File "(?P<file>[^"]+)"')
_FOREIGN: Final = re.compile(r"[/\\](site-packages|dist-packages|lib[/\\]python3(\.\d+)?)[/\\]|^<frozen ")
_OURS: Final = re.compile(r"[/\\](jobs|dlq)[/\\](attempt|task|celery|limits|worker)\b")


@dataclass(frozen=True, slots=True)
class Traceback:
    """The text of a traceback."""

    text: str

    @property
    def application(self) -> str:
        """The text without the frames of libraries; all of it if nothing were left."""
        kept = [block for block in self._blocks() if not _is_foreign(block[0])]
        own = [block for block in kept if _FRAME.match(block[0])]
        return "\n".join(line for block in kept for line in block) if own else self.text

    @property
    def shortened(self) -> bool:
        """Whether the application's reading leaves anything out."""
        return self.application.strip() != self.text.strip()

    def _blocks(self) -> list[list[str]]:
        """Frames with the lines that belong to them, and single lines between them."""
        blocks: list[list[str]] = []
        for line in self.text.splitlines():
            if blocks and line.startswith("    ") and _FRAME.match(blocks[-1][0]):
                blocks[-1].append(line)
            else:
                blocks.append([line])
        return blocks


def _is_foreign(line: str) -> bool:
    frame = _FRAME.match(line)
    return bool(frame and (_FOREIGN.search(frame["file"]) or _OURS.search(frame["file"])))
