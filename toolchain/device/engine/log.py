"""What TensorRT says while it parses, builds and runs.

Rules of this file: lines in, values out; nothing is printed. TensorRT returns nothing where it
fails and tells the reason to a logger, of which it keeps one per process, so a journal outlives
whoever asks: :meth:`Journal.watch` collects what is said while a block runs. What is kept is
bounded, and a line that is not understood is kept as it is.

Wordings are those of public build logs: NVIDIA/TensorRT-LLM #493, ultralytics/yolov5 #12248,
ultralytics/ultralytics #14751 and #22271, NVIDIA-AI-IOT/torch2trt #706.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

LIMIT_LINES, LIMIT_CHARACTERS = 200, 2000
LIMIT_SKIPPED = 1000
_MIB = 1 << 20
_ERRORS = ("ERROR", "INTERNAL_ERROR")
_SKIPPED = re.compile(r"[Ss]kipping tactic .{0,60}?insuf+icient memory on requested size of (\d+)")
# Releases that give this advice state the size in MiB, the later ones in bytes.
_IN_MIB = "Try decreasing the workspace size"
_TIMED = re.compile(r"(?:-+ Timing Runner: |Autotuning op )(.+?)(?: \(\w+(?:\[\w+\])?\)|\(key: |$)")
_SHORT = re.compile(
    r"out ?of ?memory|could not be allocated|insuf+icient (?:workspace|memory)"
    r"|memory is insuf+icient|MEM_ALLOC_FAILED|bad_alloc",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class SkippedTactic:
    """A way to compute a layer that was not tried for lack of memory.

    ``layer`` is the one that was timed last, "" where the log does not say.
    """

    layer: str
    requested_bytes: int


@dataclass(slots=True)
class Messages:
    """What was said: first errors and last warnings, each with the rest counted in ``dropped``."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)
    skipped: list[SkippedTactic] = field(default_factory=list)
    dropped: int = 0
    layer: str = ""

    def take(self, severity: str, text: str) -> None:
        """Keep one message of TensorRT's; ``severity`` as its enumeration names it."""
        if severity not in ("WARNING", *_ERRORS):
            if match := _TIMED.search(text):
                self.layer = match[1]
            return
        text = text[:LIMIT_CHARACTERS]
        self._keep(self.errors if severity in _ERRORS else self.warnings, text)
        if match := _SKIPPED.search(text):
            size = int(match[1]) * (_MIB if _IN_MIB in text else 1)
            if len(self.skipped) < LIMIT_SKIPPED:
                self.skipped.append(SkippedTactic(self.layer, size))
            else:
                self.dropped += 1
        elif _SHORT.search(text):
            self._keep(self.memory, text)

    @property
    def short_of_memory(self) -> bool:
        """Whether memory was said to be short."""
        return bool(self.memory or self.skipped)

    @property
    def first(self) -> str:
        """The first error on one line, "" if there is none: later ones follow from it."""
        return " ".join(self.errors[0].split()) if self.errors else ""

    def _keep(self, lines: list[str], text: str) -> None:
        if len(lines) < LIMIT_LINES:
            lines.append(text)
        else:
            self.dropped += 1


class Journal:
    """Everything that one logger hears, given to those who watch at the time.

    TensorRT may log from threads of its own, so lines of two builds at once reach both watchers.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._watchers: list[Messages] = []

    def take(self, severity: str, text: str) -> None:
        """Give one message to every watcher."""
        with self._lock:
            for messages in self._watchers:
                messages.take(severity, text)

    @contextmanager
    def watch(self) -> Iterator[Messages]:
        """Yield what is said while the block runs."""
        messages = Messages()
        with self._lock:
            self._watchers.append(messages)
        try:
            yield messages
        finally:
            with self._lock:
                self._watchers = [other for other in self._watchers if other is not messages]


def make_logger(module: Any, journal: Journal) -> Any:
    """Return an ``ILogger`` of ``module`` that writes to ``journal``.

    The class is made here because its base is the module's (TensorRT API, ``ILogger``: a Python
    logger derives from it and calls its initialiser).
    """

    class JournalLogger(module.ILogger):  # type: ignore[misc]  # the base is found at run time
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            journal.take(severity.name, msg)

    return JournalLogger()
