"""The messages of TensorRT while it parses, builds and runs.

Rules of this file: lines in, values out; nothing is printed. When TensorRT fails, it returns
nothing and gives the reason to its logger. It keeps one logger per process, so a journal outlives
the calls that use it: :meth:`Journal.watch` collects the messages while a block runs. The number of
messages is bounded, and a line that is not understood stays as it is.

The patterns are those of public build logs: NVIDIA/TensorRT-LLM #493, ultralytics/yolov5 #12248,
ultralytics/ultralytics #14751 and #22271, NVIDIA-AI-IOT/torch2trt #706.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from toolchain.core.files import MIB

LIMIT_LINES, LIMIT_CHARACTERS = 200, 2000
LIMIT_SKIPPED = 1000
_ERRORS = ("ERROR", "INTERNAL_ERROR")
# ``f+``: some releases of TensorRT write "insuficient".
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
    """A way to compute a layer that TensorRT did not try for lack of memory.

    ``layer``: the layer that it timed last, "" if the log does not say.
    """

    layer: str
    requested_bytes: int


@dataclass(slots=True)
class Messages:
    """TensorRT's messages: errors, warnings and complaints about memory.

    Each list holds the first :data:`LIMIT_LINES`; ``dropped`` counts the rest. ``layer``: the layer
    that was timed last.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)
    skipped: list[SkippedTactic] = field(default_factory=list)
    dropped: int = 0
    layer: str = ""

    def take(self, severity: str, text: str) -> None:
        """Keep one message of TensorRT's; ``severity`` as its enumeration names it."""
        # Of all lines below a warning one kind matters: those that name the layer being timed.
        if severity not in ("WARNING", *_ERRORS):
            if match := _TIMED.search(text):
                self.layer = match[1]
            return
        text = text[:LIMIT_CHARACTERS]
        self._keep(self.errors if severity in _ERRORS else self.warnings, text)
        if match := _SKIPPED.search(text):
            size = int(match[1]) * (MIB if _IN_MIB in text else 1)
            if len(self.skipped) < LIMIT_SKIPPED:
                self.skipped.append(SkippedTactic(self.layer, size))
            else:
                self.dropped += 1
        elif _SHORT.search(text):
            self._keep(self.memory, text)

    @property
    def short_of_memory(self) -> bool:
        """Whether a message said that memory was short."""
        return bool(self.memory or self.skipped)

    @property
    def first(self) -> str:
        """The first error on one line, "" if there is none. Later errors follow from it."""
        return " ".join(self.errors[0].split()) if self.errors else ""

    def _keep(self, lines: list[str], text: str) -> None:
        if len(lines) < LIMIT_LINES:
            lines.append(text)
        else:
            self.dropped += 1


class Journal:
    """Gives each message of one logger to everybody who watches at that time.

    TensorRT may log from threads of its own. So if two builds run at once, both get all lines.
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
        """Yield the messages, which fill while the block runs."""
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
