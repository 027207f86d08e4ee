"""A stream of answers: a folder of pictures, a video file or a camera, frame by frame.

Rules of this file: it finds the frames and hands each to a runner; decoding videos and cameras is
:mod:`~toolchain.pictures.video`'s. What is wrong with one frame stands in that frame's answer and
the stream goes on; what is wrong with the whole source is raised. Nothing is opened before the
first frame is asked for, and closing the generator releases everything.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.core.errors import DataError, TimeLimitError, UsageError
from toolchain.device.runtime.answers import Prediction
from toolchain.pictures import video
from toolchain.pictures.preprocess import SUFFIXES
from toolchain.pictures.request import Picture

if TYPE_CHECKING:
    from toolchain.device.runtime.runner import Runner

MAX_DEPTH = 16
MAX_PICTURES = 1_000_000
CAMERA = "camera:"


@dataclass(frozen=True, slots=True)
class Frame:
    """The answer to one frame, or why there is none: exactly one of the last two is set.

    ``source``: the picture's path, the video's path or ``camera:N``. ``index``: the frame's number
    in the source, from 0; numbers that ``every`` or a busy camera left out are missing. ``at_s``:
    its time in the video, or since the camera's first frame; None for pictures.
    """

    source: str
    index: int
    at_s: float | None
    prediction: Prediction | None
    error: DataError | TimeLimitError | None


@dataclass(frozen=True, slots=True)
class _Shot:
    source: str
    index: int
    at_s: float | None
    picture: Picture | DataError


def stream(
    runner: Runner,
    source: str | Path | int,
    domain: str | None = None,
    *,
    every: int = 1,
    limit: int | None = None,
    time_limit_s: float | None = None,
) -> Generator[Frame]:
    """Return an iterator over the answers to the frames of ``source``.

    ``source``: a folder, whose pictures are answered in the order of their names and those of its
    subfolders after them; a video file, known by its suffix (``capture.VIDEO_SUFFIXES``); any other
    file, as one picture; a camera, as a number or ``camera:N``, which always gives its newest frame
    and has no end. ``every``: answer the first of each so many frames. ``limit``: stop after so
    many answers. ``domain`` and ``time_limit_s``, of one frame, as for :meth:`Runner.run`.

    Raises UsageError at once for an ``every`` or ``limit`` below 1 and a camera that is no number.
    While it is iterated: DataError for a source that is missing, empty or no video, one that is
    larger than ``MAX_DEPTH`` or ``MAX_PICTURES``, and a video or camera that breaks off;
    MissingPackageError for a video or camera without OpenCV; and what :meth:`Runner.run` raises for
    other reasons than a picture or its time.
    """
    for option, value in (("every", every), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{option}: expected 1 or more, got {value}", fix="leave it out")
    shots = _shots(source, every)
    # Fixed now: that another domain is loaded meanwhile must not end the stream.
    loaded = tuple(runner.domains)
    name = loaded[0] if domain is None and len(loaded) == 1 else domain
    return _answers(runner, shots, name, limit, time_limit_s)


def is_endless(source: str | Path | int) -> bool:
    """Whether ``source`` is a camera, whose frames do not end by themselves."""
    return isinstance(source, int) or str(source).startswith(CAMERA)


def _answers(
    runner: Runner,
    shots: Generator[_Shot],
    domain: str | None,
    limit: int | None,
    time_limit_s: float | None,
) -> Generator[Frame]:
    with closing(shots):
        for shot in islice(shots, limit):
            try:
                if isinstance(shot.picture, DataError):
                    raise shot.picture
                found = runner.run(shot.picture, domain, time_limit_s=time_limit_s)
            except (DataError, TimeLimitError) as err:
                yield Frame(shot.source, shot.index, shot.at_s, None, err)
            else:
                yield Frame(shot.source, shot.index, shot.at_s, found, None)


def _shots(source: str | Path | int, every: int) -> Generator[_Shot]:
    if is_endless(source):
        number = _camera_number(source)
        return _stills(f"{CAMERA}{number}", video.camera(number, every))
    path = Path(source)  # type: ignore[arg-type]
    if path.suffix.lower() in video.VIDEO_SUFFIXES and not path.is_dir():
        return _stills(str(path), video.video(path, every))
    return _pictures(path, every)


def _camera_number(source: str | Path | int) -> int:
    digits = str(source).removeprefix(CAMERA)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 4):
        raise UsageError(f"expected a camera's number, got {source!r:.80}", fix="name camera:0")
    return int(digits)


def _stills(source: str, stills: Generator[video.Still]) -> Generator[_Shot]:
    with closing(stills):
        for still in stills:
            yield _Shot(source, still.index, still.at_s, still.pixels)


def _pictures(path: Path, every: int) -> Generator[_Shot]:
    if not path.exists():
        raise DataError(f"{path}: no such picture, folder or video", fix="check the path")
    inside = path.resolve()
    listed = list(_listed(path)) if path.is_dir() else [str(path)]
    if not listed:
        raise DataError(
            f"{path}: expected pictures ({' '.join(sorted(SUFFIXES))}), found none",
            fix="name another folder, or a picture itself",
        )
    for index in range(0, len(listed), every):
        yield _Shot(listed[index], index, None, _inside(Path(listed[index]), inside))


def _inside(path: Path, inside: Path) -> Path | DataError:
    """Return ``path``, or the fault of a link that leads out of ``inside``."""
    if path.is_symlink() and not path.resolve().is_relative_to(inside):
        return DataError(f"{path}: links out of the folder", fix="name the picture itself")
    return path


def _listed(folder: Path) -> Iterator[str]:
    """Yield the pictures below ``folder`` in order; hidden ones and linked folders are left out."""
    found = 0
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if len(Path(place).relative_to(folder).parts) > MAX_DEPTH:
            raise DataError(f"{place}: folders nest too deeply", fix="name this folder itself")
        for name in sorted(names):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                found += 1
                _check_count(found, folder)
                yield str(Path(place, name))


def _check_count(found: int, folder: Path) -> None:
    if found > MAX_PICTURES:
        raise DataError(
            f"{folder}: expected at most {MAX_PICTURES} pictures", fix="name its subfolders instead"
        )


def _refuse(err: OSError) -> None:
    raise DataError(
        f"{err.filename}: cannot be listed: {err.strerror}", fix="check its permissions"
    ) from err
