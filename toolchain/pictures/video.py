"""Frames of videos and cameras, through OpenCV, which is an extra (``video``).

Rules of this file: no other file imports OpenCV, and this one only when a source is opened. Frames
are uint8 ``[H, W, 3]`` RGB. Closing a generator releases what it opened. A video is decoded one
frame ahead of whoever asks. A camera does not wait: the caller gets its newest frame, the frames in
between are dropped, and gaps in the numbers show it. OpenCV's settings belong to the process, so
they are left alone; an application can silence what OpenCV prints (environment variables
``OPENCV_LOG_LEVEL`` and ``OPENCV_FFMPEG_LOGLEVEL``).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from toolchain.core.errors import DataError, MissingPackageError
from toolchain.core.files import is_file
from toolchain.pictures.decode import MAX_PIXELS, Pixels

if TYPE_CHECKING:
    import cv2

VIDEO_SUFFIXES = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)
# Some containers only estimate how many frames they hold. A video that lacks no more is whole.
_MISSING_FRAMES, _MISSING_SHARE = 2, 0.05


@dataclass(frozen=True, slots=True)
class Still:
    """A frame: its number in the source, its time in seconds where known, uint8 ``[H, W, 3]``."""

    index: int
    at_s: float | None
    pixels: Pixels


def video(path: Path, every: int = 1) -> Generator[Still]:
    """Yield every ``every``-th frame of a video file, turned upright as the file says.

    Raises DataError for a file that is no video, has no frame, whose frames have more than
    ``MAX_PIXELS``, and, after the frames before it, where the video breaks off;
    MissingPackageError without OpenCV.
    """
    return ahead(_video(path, every))


def camera(number: int, every: int = 1) -> Generator[Still]:
    """Yield the newest frame of a camera, without end; times count from the first.

    Raises DataError if there is no such camera, and when it gives no further frame;
    MissingPackageError without OpenCV.
    """
    return newest(_camera(number, every))


def ahead(stills: Generator[Still]) -> Generator[Still]:
    """Yield ``stills``, the next of which is made in a thread while the last is used."""
    with closing(stills), ThreadPoolExecutor(1, "da3-decode") as pool:
        coming = pool.submit(next, stills, None)
        while (still := coming.result()) is not None:
            coming = pool.submit(next, stills, None)
            yield still


def newest(stills: Generator[Still]) -> Generator[Still]:
    """Yield the newest of ``stills``, which a thread takes as they come; older ones are dropped."""
    latest: deque[Still] = deque(maxlen=1)
    news, stop = Event(), Event()

    def read() -> None:
        """Take the frames as they come, until the caller stops."""
        for still in stills:
            if stop.is_set():
                return
            latest.append(still)
            news.set()

    # The pool ends first: Python cannot close a generator that a thread is running.
    with closing(stills), ThreadPoolExecutor(1, "da3-camera") as pool:
        reading = pool.submit(read)
        reading.add_done_callback(lambda _: news.set())
        try:
            while True:
                # Asked before ``latest``: the last frame comes before the end.
                over = reading.done()
                if latest:
                    yield latest.pop()
                elif over:
                    break
                else:
                    news.wait()
                    news.clear()
        finally:
            stop.set()
        # Raises here what ended the reading in its thread.
        reading.result()


def _video(path: Path, every: int) -> Generator[Still]:
    # Opening a pipe would wait for ever, and OpenCV takes some names for network addresses.
    if not is_file(path):
        raise DataError(f"{path}: expected a video file, found none", fix="check the path")
    fix = "convert it, for example to MP4 with H.264"
    # FFmpeg alone: other readers would take a name with % for a series of files.
    with _opened(str(path), fix, lambda cv2: cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)) as opened:
        capture, cv2 = opened
        _check_area(capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        count = yield from _stills(capture, every, lambda: capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3)
        if count == 0:
            raise DataError("expected frames, got none", fix=fix)
        if count < announced - max(_MISSING_FRAMES, _MISSING_SHARE * announced):
            raise DataError(
                f"expected {announced:.0f} frames, got {count} before it breaks off",
                fix="copy or record it again; the frames before were answered",
            )


def _camera(number: int, every: int) -> Generator[Still]:
    fix = "connect one, or try another number: camera:0, camera:1, ..."
    with _opened(f"camera:{number}", fix, lambda cv2: cv2.VideoCapture(number)) as (capture, _):
        started = time.monotonic()
        count = yield from _stills(capture, every, lambda: time.monotonic() - started)
        raise DataError(f"expected another frame after {count}, got none", fix="connect it again")


def _stills(
    capture: cv2.VideoCapture, every: int, clock: Callable[[], float]
) -> Generator[Still, None, int]:
    """Yield every ``every``-th frame, and return how many there were in all."""
    index = 0
    while capture.grab():
        if index % every == 0:
            at_s = clock()
            decoded, frame = capture.retrieve()
            if not decoded:
                raise DataError(f"frame {index} cannot be decoded", fix="record or copy it again")
            _check_area(frame.shape[1], frame.shape[0])
            yield Still(index, round(at_s, 6) if math.isfinite(at_s) else None, _rgb(frame))
        index += 1
    return index


def _rgb(frame: Any) -> Pixels:
    """Return OpenCV's BGR as RGB."""
    return np.ascontiguousarray(frame[..., ::-1], dtype=np.uint8)


@contextmanager
def _opened(
    what: str, fix: str, opening: Callable[[Any], cv2.VideoCapture]
) -> Iterator[tuple[cv2.VideoCapture, Any]]:
    """Yield an open capture and OpenCV; errors of the block name ``what``."""
    try:
        import cv2
    except ImportError as err:
        raise MissingPackageError("opencv-python-headless", "reading " + what, "video") from err
    capture = opening(cv2)
    try:
        if not capture.isOpened():
            raise DataError(f"OpenCV {cv2.__version__} cannot open it", fix=fix)
        yield capture, cv2
    except DataError as err:
        raise DataError(f"{what}: {err.message}", fix=err.fix) from err
    except cv2.error as err:
        raise DataError(f"{what}: {err}", fix=fix) from err
    finally:
        capture.release()


def _check_area(width: float, height: float) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"expected frames of at most {MAX_PIXELS} pixels, got {width:.0f} x {height:.0f}",
            fix="scale the video down",
        )
