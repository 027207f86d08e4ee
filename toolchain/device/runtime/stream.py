"""A stream of answers: a folder of pictures, a video file or a camera, frame by frame.

Rules of this file: :mod:`toolchain.pictures.sources` finds the frames; this file asks for an answer
to each. What is wrong with one frame stands in that frame's answer and the stream goes on. What is
wrong with the whole source is raised. It knows a runner only by the two members that it uses.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from toolchain.core.errors import DataError, TimeLimitError, UsageError
from toolchain.device.runtime.answers import Prediction
from toolchain.pictures.request import Picture
from toolchain.pictures.sources import Shot, shots


class Answerer(Protocol):
    """What a stream asks: :class:`toolchain.device.Runner`, or anything like it."""

    @property
    def domains(self) -> Iterable[str]:
        """The names of the loaded domains."""
        ...

    def run(
        self, image: Picture, domain: str | None = None, *, time_limit_s: float | None = None
    ) -> Prediction:
        """Answer one picture, as :meth:`toolchain.device.Runner.run`."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """The answer to one frame, or why there is none: exactly one of the last two is set.

    ``source``: the picture's path, the video's path or ``camera:N``. ``index``: the frame's number
    in the source, from 0; numbers that ``every`` or a busy camera left out are missing. ``at_s``:
    its time in the video, or since the camera's first frame, in seconds; None for pictures.
    """

    source: str
    index: int
    at_s: float | None
    prediction: Prediction | None
    error: DataError | TimeLimitError | None


def stream(
    runner: Answerer,
    source: str | Path | int,
    domain: str | None = None,
    *,
    every: int = 1,
    limit: int | None = None,
    time_limit_s: float | None = None,
) -> Generator[Frame]:
    """Return an iterator over the answers to the frames of ``source``.

    :func:`toolchain.pictures.sources.shots` says what ``source`` may be and what it raises.
    ``every``: answer the first of each so many frames. ``limit``: stop after so many answers.
    ``domain`` and ``time_limit_s``, of one frame, as for :meth:`toolchain.device.Runner.run`, which
    also says what is raised for other reasons than a picture or its time.

    Raises UsageError at once for an ``every`` or ``limit`` below 1.
    """
    for option, value in (("every", every), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{option}: expected 1 or more, got {value}", fix="leave it out")
    frames = shots(source, every)
    # Fixed now: that another domain is loaded meanwhile must not end the stream.
    loaded = tuple(runner.domains)
    name = loaded[0] if domain is None and len(loaded) == 1 else domain
    return _answers(runner, frames, name, limit, time_limit_s)


def _answers(
    runner: Answerer,
    frames: Generator[Shot],
    domain: str | None,
    limit: int | None,
    time_limit_s: float | None,
) -> Generator[Frame]:
    # A camera is let go of at once, also where the caller wants no more answers.
    with closing(frames):
        for shot in islice(frames, limit):
            prediction: Prediction | None = None
            error: DataError | TimeLimitError | None = None
            try:
                if isinstance(shot.picture, DataError):
                    # It was not read; its answer tells that as it tells a picture that is refused.
                    raise shot.picture
                prediction = runner.run(shot.picture, domain, time_limit_s=time_limit_s)
            except (DataError, TimeLimitError) as err:
                error = err
            yield Frame(
                source=shot.source,
                index=shot.index,
                at_s=shot.at_s,
                prediction=prediction,
                error=error,
            )
