"""Steps of a long command, shown on stderr as they begin."""

from __future__ import annotations

import time
from typing import TextIO

WORDS = {
    "restore": "restore backbone and checkpoint",
    "split": "split into backbone and domain",
    "data": "read the data",
    "reference": "take the reference from PyTorch",
    "link": "link every flavour",
    "check": "compare with the reference",
    "pack": "pack the bundle",
}


class Steps:
    """A callback for steps; one line each, with the seconds that it took once it is over.

    A context, so that the line of a step that fails says so.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._line = ""
        self._since = 0.0

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end("" if kind is None else "  failed")

    def __call__(self, step: str) -> None:
        """Hear that ``step`` begins, which ends the one before."""
        self._end()
        self._line, self._since = WORDS.get(step, step), time.monotonic()
        if self.stream.isatty():
            self._write(f"  {self._line} ...")

    def _end(self, mark: str = "") -> None:
        if not self._line:
            return
        start = "\r" if self.stream.isatty() else ""
        self._write(f"{start}  {self._line:<34} {time.monotonic() - self._since:6.1f} s{mark}\n")
        self._line = ""

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
