"""What a request may bring, and the one tensor that it becomes.

Rules of this file: everything is checked here, once, before a model sees it. Pictures go through
:mod:`toolchain.pictures.preprocess`; prepared tensors are taken as they are. Nothing is guessed: a
tensor of another size is refused, not resized.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Image as PillowImage

from toolchain.core.arrays import Floats
from toolchain.core.errors import DataError
from toolchain.pictures.preprocess import Preprocessing, normalise, pixels

Picture = str | Path | bytes | PillowImage | npt.NDArray[Any]
CHANNELS = 3


def one(p: Preprocessing, picture: Picture) -> Floats:
    """Return one picture as float32 ``[1, 3, size, size]``.

    ``picture``: a path, the bytes of a picture file, a Pillow image, uint8 ``[H, W, 3]`` (RGB) or
    ``[H, W]`` (grey), or a prepared tensor float32 ``[3, size, size]`` or ``[1, 3, size, size]``.
    Raises DataError.
    """
    if not isinstance(picture, str | Path | bytes | PillowImage | np.ndarray):
        raise DataError(
            f"expected a path, bytes, a Pillow image or an array, got {type(picture).__name__}",
            fix="convert it, for example with numpy.asarray",
        )
    if isinstance(picture, np.ndarray) and picture.dtype.kind == "f":
        return tensor(p, picture[None] if picture.ndim == 3 else picture, limit=1)
    return normalise(p, _pixels(p, picture)[None])


def many(p: Preprocessing, pictures: Sequence[Picture] | npt.NDArray[Any], limit: int) -> Floats:
    """Return up to ``limit`` pictures as float32 ``[N, 3, size, size]``.

    ``pictures``: a sequence of what :func:`one` takes, uint8 ``[N, H, W, 3]``, or a prepared tensor
    float32 ``[N, 3, size, size]``. Raises DataError, naming the picture by its place.
    """
    if isinstance(pictures, np.ndarray) and pictures.dtype.kind == "f":
        return tensor(p, pictures, limit=limit)
    if isinstance(pictures, str | bytes) or not isinstance(pictures, Sequence | np.ndarray):
        raise DataError(
            f"expected a sequence of pictures, got {type(pictures).__name__}",
            fix="put one picture into a list, or use run()",
        )
    if isinstance(pictures, np.ndarray) and pictures.ndim != 4:
        raise DataError(
            f"expected pictures [N, H, W, 3], got {pictures.dtype} {list(pictures.shape)}",
            fix="use run() for one picture",
        )
    _check_count(len(pictures), limit)
    return np.concatenate([_placed(p, place, each) for place, each in enumerate(pictures)])


def tensor(p: Preprocessing, array: npt.NDArray[Any], *, limit: int) -> Floats:
    """Return the prepared tensor ``array`` if a model can take it: finite, float32, its shape.

    Raises DataError. Values are not compared with the preprocessing: that it was normalised is for
    the caller to know.
    """
    shape = (CHANNELS, p.size, p.size)
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"expected a numpy array, got {type(array).__name__}", fix="pass np.asarray(...) of it"
        )
    if array.dtype != np.float32 or array.ndim != 4 or array.shape[1:] != shape:
        raise DataError(
            f"expected a tensor float32 [N, {', '.join(map(str, shape))}], "
            f"got {array.dtype} {list(array.shape)}",
            fix="pass the picture itself, which is scaled and normalised, or prepare() its result",
        )
    _check_count(len(array), limit)
    if not np.isfinite(array).all():
        raise DataError(
            "expected finite values, got NaN or infinity in the tensor",
            fix="look at what computes it; a NaN would close gates in silence",
        )
    return np.ascontiguousarray(array)


def _pixels(p: Preprocessing, picture: Picture) -> npt.NDArray[np.uint8]:
    try:
        return pixels(p, picture)
    except DataError:
        raise
    # Pillow decodes an image that it opened only now, and raises many kinds on damaged bytes.
    except Exception as err:
        raise DataError(
            f"expected a whole picture, got {type(picture).__name__}: {err}", fix="replace it"
        ) from err


def _placed(p: Preprocessing, place: int, picture: Picture) -> Floats:
    try:
        return one(p, picture)
    except DataError as err:
        raise DataError(f"picture {place}: {err.message}", fix=err.fix) from err


def _check_count(count: int, limit: int) -> None:
    if not 1 <= count <= limit:
        raise DataError(
            f"expected 1 to {limit} pictures at once, got {count}",
            fix="send them in parts, or give the runner a larger max_batch"
            if count
            else "leave out empty batches",
        )
