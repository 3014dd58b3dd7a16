"""history.jsonl: every validation of a run, a line each."""

import json
from pathlib import Path

from loractr.training.events import Event, Validated


class HistoryFile:
    """history.jsonl: one line per validation, on disk before the checkpoint that counts it.

    Args:
        path: The file; made when the first line comes. One of an interrupted run stays as it is
            until `cut` says how much of it counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fit = "base"
        """Name of the fit whose lines come now."""
        self.lines = 0

    def skip(self, lines: int) -> None:
        """Count `lines` more of the lines that are there; what follows them stays."""
        self.lines += lines

    def cut(self, lines: int) -> None:
        """Keep the first `lines` lines; new ones follow them."""
        self.lines = lines
        if not self.path.exists():
            return
        with self.path.open("rb+") as file:
            for _ in range(lines):
                file.readline()
            file.truncate()

    def __call__(self, event: Event) -> None:
        """Write a validation down."""
        if isinstance(event, Validated):
            line = json.dumps({"fit": self.fit, **event.dump()}, ensure_ascii=False)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            self.lines += 1
