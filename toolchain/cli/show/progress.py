"""Progress of a long command on stderr.

Rules of this file: the library calls back and never draws. Only :class:`Line` moves the cursor;
everything else here draws through it. On a terminal a line is drawn again in its place. Elsewhere,
as in a log file, only lines that stay are written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar

from toolchain.cli.show import layout
from toolchain.core.timing import Notify

if TYPE_CHECKING:
    from toolchain.training.loop.progress import Status

ItemT = TypeVar("ItemT")
EVERY_S = 10.0
"""A log file gets a line at least so often, in seconds, as long as there is any progress."""

_PHASE_WORDS = {
    "start": "start PyTorch",
    "data": "list the pictures",
    "model": "build the model",
    "memory": "count the memory",
    "trial": "export it untrained, for trial",
    "search": "search what to update: pictures",
    "head": "fit the head and test it alone: pictures looked at",
    "steps": "train: steps",
    "validation": "look at the validation part: pictures",
    "test": "test: pictures",
    "gates": "count open gates: pictures",
}
_STEP_WORDS = {
    "start": "start PyTorch",
    "restore": "restore backbone and checkpoint",
    "split": "split into backbone and domain",
    "data": "read the data",
    "reference": "take the reference from PyTorch",
    "link": "link every flavour",
    "check": "compare with the reference",
    "pack": "pack the bundle",
}


class Line:
    """The last line of ``stream``: a terminal's can be drawn again, any other stream's cannot."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.live = stream.isatty()
        self._columns = 0

    def draw(self, text: str) -> None:
        """Show ``text`` in place of the text before it, on a terminal only."""
        if self.live:
            self._columns = self._write(text)

    def keep(self, text: str) -> None:
        """Show ``text`` in place of the text before it, and leave it there as a line of its own."""
        self._write(text, "\n")
        self._columns = 0

    def end(self) -> None:
        """Leave the text that was drawn last as a line of its own."""
        if self._columns:
            self.stream.write("\n")
            self.stream.flush()
            self._columns = 0

    def _write(self, text: str, end: str = "") -> int:
        """Write ``text`` and return its width in columns."""
        # A file's name may hold what moves the cursor or colours the terminal.
        text = layout.clean(text)
        # Spaces cover the rest of a longer text before it.
        start = "\r" if self.live else ""
        self.stream.write(f"{start}{text.ljust(self._columns)}{end}")
        self.stream.flush()
        return len(text)


class Bar:
    """A training's ``Progress``: a bar that grows on a terminal, and one line for each epoch.

    Any other stream gets a line as each phase begins, and one every ``EVERY_S`` seconds within it.
    """

    def __init__(
        self, stream: TextIO, label: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._line = Line(stream)
        self._label = f"{label}: " if label else ""
        self._clock = clock
        self._phase, self._shown = "", clock()

    def phase(self, phase: str, done: int, total: int) -> None:
        """Show what a training is at, as soon as it begins."""
        text = _PHASE_WORDS[phase] + (f"  {done}/{total}" if total else "")
        self._show(text, now=phase != self._phase)
        self._phase = phase

    def part(self, step: str) -> None:
        """Show which step of the export for trial begins."""
        self._show(f"{_PHASE_WORDS['trial']}: {_STEP_WORDS[step]}", now=True)

    def step(self, status: Status) -> None:
        """Draw the bar again."""
        bar = layout.bar(status.step / status.steps)
        self._show(f"[{bar}] {describe(status)}")

    def epoch(self, status: Status) -> None:
        """Write a line that stays."""
        self._keep(describe(status) + _validated(status))

    def keep(self, text: str) -> None:
        """Write a line that stays, without the label."""
        self._line.keep(text)

    def close(self) -> None:
        """Leave the cursor at the start of a line."""
        self._line.end()

    def _show(self, text: str, *, now: bool = False) -> None:
        """Draw ``text`` where that is possible; elsewhere write it if it is due, or ``now``."""
        if self._line.live:
            self._line.draw(self._label + text)
        elif now or self._clock() - self._shown >= EVERY_S:
            self._keep(text)

    def _keep(self, text: str) -> None:
        self._line.keep(self._label + text)
        self._shown = self._clock()


def _validated(status: Status) -> str:
    figures = status.figures
    if figures is None or figures.validation_accuracy is None:
        return ""
    best = "  best so far" if status.best == status.epoch else ""
    return f"  validation {figures.validation_accuracy:.1%}{best}"


def describe(status: Status) -> str:
    """Return a status of a training as one line for people."""
    minutes, seconds = divmod(round(status.remaining_s), 60)
    return (
        f"epoch {status.epoch}/{status.epochs}  loss {status.loss:.3f}  "
        f"training accuracy {status.accuracy:.1%}  gates open {status.open_share:.0%}  "
        f"executed {status.executed_share:.0%}  left {minutes}:{seconds:02d}"
    )


class Steps:
    """The steps of a pipeline: one line for each.

    On a terminal the line ends with the seconds that the step took. Any other stream gets it as the
    step begins, with the seconds since the first one did. The library calls it as each step begins.
    It is a context manager, so that the line of a step that fails says so.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._line = Line(stream)
        self._clock = clock
        self._step = ""
        self._first = self._started = clock()

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end("" if kind is None else "  failed")

    def __call__(self, step: str) -> None:
        """Show that ``step`` begins; the step before it has ended."""
        self._end()
        self._step, self._started = _STEP_WORDS.get(step, step), self._clock()
        if self._line.live:
            self._line.draw(f"  {self._step} ...")
        else:
            self._line.keep(f"  {self._step:<34} at {self._started - self._first:.1f} s")

    def _end(self, mark: str = "") -> None:
        if self._step and (self._line.live or mark):
            seconds = self._clock() - self._started
            self._line.keep(f"  {self._step:<34} {seconds:6.1f} s{mark}")
        self._step = ""


@contextmanager
def telling(label: str = "") -> Iterator[Notify]:
    """Yield a callback that shows a text on stderr, after ``label``.

    A terminal shows all texts in one line; any other stream gets a line for each.
    """
    line = Line(sys.stderr)
    show = line.draw if line.live else line.keep
    start = f"{label}: " if label else ""
    try:
        yield lambda text: show(layout.clean(start + text))
    finally:
        line.end()


def counted(items: Iterable[ItemT], word: str) -> Iterator[ItemT]:
    """Yield ``items`` and show on stderr how many there were; ``word`` follows the number.

    A stream that is no terminal gets a line every ``EVERY_S`` seconds.
    """
    line = Line(sys.stderr)
    show = _paced(line, shown=time.monotonic())
    try:
        for number, item in enumerate(items, 1):
            show(f"  {number} {word}")
            yield item
    finally:
        line.end()


@contextmanager
def counting(word: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows how many of all things are done.

    A stream that is no terminal gets a line as the first one is done, and one every ``EVERY_S``
    seconds.
    """
    line = Line(sys.stderr)
    show = _paced(line, shown=-EVERY_S)
    try:
        yield lambda done, all_: show(f"  {done}/{all_} {word}")
    finally:
        line.end()


def _paced(line: Line, *, shown: float) -> Notify:
    """Return what draws each text on a terminal, and elsewhere keeps one every ``EVERY_S`` seconds.

    ``shown``: when the last one was kept, on the monotonic clock.
    """

    def show(text: str) -> None:
        nonlocal shown
        if line.live:
            line.draw(text)
        elif time.monotonic() - shown >= EVERY_S:
            line.keep(text)
            shown = time.monotonic()

    return show
