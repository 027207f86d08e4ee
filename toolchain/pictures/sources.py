"""Where pictures come from: a picture, a folder of them, a video file or a camera.

Rules of this file: it finds frames and opens none of the picture files;
:mod:`~toolchain.pictures.video` decodes videos and cameras. What is wrong with one frame stands in
the place of its picture, and the next frame follows. What is wrong with the whole source is raised.
Nothing is opened before the caller takes the first frame. Closing the generator releases
everything.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.errors import DataError, UsageError
from toolchain.core.files import exists, is_folder, resolved
from toolchain.pictures import video
from toolchain.pictures.decode import SUFFIXES, UNREAD_SUFFIXES
from toolchain.pictures.request import Picture
from toolchain.pictures.service import service_folder

MAX_DEPTH = 16
MAX_PICTURES = 1_000_000
CAMERA = "camera:"


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame of a source, and the picture in it or the fault that keeps it from being used.

    ``source``: the picture's path, the video's path or ``camera:N``. ``index``: the frame's number
    in the source, from 0. ``at_s``: its time in the video, or since the camera's first frame, in
    seconds; None for pictures.
    """

    source: str
    index: int
    at_s: float | None
    picture: Picture | DataError


def is_endless(source: str | Path | int) -> bool:
    """Whether ``source`` is a camera, whose frames do not end by themselves."""
    return isinstance(source, int) or str(source).startswith(CAMERA)


def shots(source: str | Path | int, every: int) -> Generator[Shot]:
    """Return an iterator over the first of each ``every`` frames of ``source``.

    ``source``: a folder, whose pictures come in the order of their names and those of its
    subfolders after them (hidden folders and those of `service` are not entered, and a picture of
    a format that is not read comes as a fault); a video file, known by its suffix
    (``video.VIDEO_SUFFIXES``); any other file, as one picture; a camera, as a number or
    ``camera:N``, which always gives its newest frame and has no end.

    Raises UsageError at once for a camera that is no number. While it is iterated: DataError for a
    source that is missing, empty or no video, one that is larger than ``MAX_DEPTH`` or
    ``MAX_PICTURES``, and a video or camera that breaks off; StorageError where the file system
    refuses; MissingPackageError for a video or camera without OpenCV.
    """
    if is_endless(source):
        number = _camera_number(source)
        return _stills(f"{CAMERA}{number}", video.camera(number, every))
    path = Path(source)  # type: ignore[arg-type]
    if path.suffix.lower() in video.VIDEO_SUFFIXES and not is_folder(path):
        return _stills(str(path), video.video(path, every))
    return _pictures(path, every)


def _camera_number(source: str | Path | int) -> int:
    digits = str(source).removeprefix(CAMERA)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 4):
        raise UsageError(f"expected a camera's number, got {source!r:.80}", fix="name camera:0")
    return int(digits)


def _stills(source: str, stills: Generator[video.Still]) -> Generator[Shot]:
    with closing(stills):
        for still in stills:
            yield Shot(source=source, index=still.index, at_s=still.at_s, picture=still.pixels)


def _pictures(path: Path, every: int) -> Generator[Shot]:
    if not exists(path):
        raise DataError(f"{path}: no such picture, folder or video", fix="check the path")
    root = resolved(path)
    names = list(_listed(path)) if is_folder(path) else [str(path)]
    if not names:
        raise DataError(
            f"{path}: expected pictures ({' '.join(sorted(SUFFIXES))}), found none",
            fix="name another folder, or a picture itself",
        )
    for index in range(0, len(names), every):
        picture = _inside(Path(names[index]), root)
        yield Shot(source=names[index], index=index, at_s=None, picture=picture)


def _inside(path: Path, root: Path) -> Path | DataError:
    """Return ``path``, or the fault of a link that leads out of ``root``."""
    if path.is_symlink() and not resolved(path).is_relative_to(root):
        return DataError(f"{path}: links out of the folder", fix="name the picture itself")
    return path


def _listed(folder: Path) -> Iterator[str]:
    """Yield the pictures below ``folder`` in order; hidden ones and linked folders are left out."""
    count = 0
    suffixes = SUFFIXES | UNREAD_SUFFIXES.keys()
    for place, folders, names in os.walk(folder, onerror=_refuse):
        # In place: os.walk goes down into what is left in this very list.
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and service_folder(name) is None
        )
        if len(Path(place).relative_to(folder).parts) > MAX_DEPTH:
            raise DataError(f"{place}: folders nest too deeply", fix="name this folder itself")
        for name in sorted(names):
            if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                count += 1
                _check_count(count, folder)
                yield str(Path(place, name))


def _check_count(count: int, folder: Path) -> None:
    if count > MAX_PICTURES:
        raise DataError(
            f"{folder}: expected at most {MAX_PICTURES} pictures", fix="name its subfolders instead"
        )


def _refuse(err: OSError) -> None:
    raise DataError(
        f"{err.filename}: cannot be listed: {err.strerror}", fix="check its permissions"
    ) from err
