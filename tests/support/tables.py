"""Small data in the forms that people have: a table beside its pictures, idx files, an archive.

The writers know nothing of our readers: the idx writer is made of `struct` alone.
"""

from __future__ import annotations

import dataclasses
import gzip
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolchain import recipe
from toolchain.core.arrays import Array
from toolchain.recipe import DataSpec, Recipe
from toolchain.recipe.library import packaged

IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte.gz",
)
NAMES = ("x_train", "y_train", "x_test", "y_test")


def spec(loader: str, **keys: Any) -> DataSpec:
    return DataSpec(loader=loader, root="", train=None, test=None, seed=1, **keys)


def recipe_of(data: DataSpec, size: int = 8) -> Recipe:
    base = recipe.load(packaged() / "flowers.yaml")
    square = dataclasses.replace(base.preprocess, size=size, resize=size)
    return dataclasses.replace(base, data=data, preprocess=square)


def picture(path: Path, shade: int = 9, size: tuple[int, int] = (9, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)


def cells(root: Path, count: int = 10, *, header: str | None = "file,label") -> Path:
    """Make ``count`` pictures in ``root``/images, and labels.csv: even ones intact, others not."""
    lines = [] if header is None else [header]
    for i in range(count):
        picture(root / "images" / f"c{i:02d}.png", 20 * i)
        lines.append(f"images/c{i:02d}.png,{('intact', 'broken')[i % 2]}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def idx_bytes(kind: str, shape: Sequence[int], values: bytes) -> bytes:
    """Return an idx file by the description of the format; ``values`` are big-endian."""
    head = struct.pack(">BBBB", 0, 0, IDX_TYPES[kind], len(shape))
    return head + b"".join(struct.pack(">I", side) for side in shape) + values


def write_idx(path: Path, array: Array) -> Path:
    """Write an array, gzipped where the name says so, number by number."""
    kind = array.dtype.str[1:]
    code = {"u1": "B", "i1": "b", "i2": "h", "i4": "i", "f4": "f", "f8": "d"}[kind]
    flat = array.ravel().tolist()
    data = idx_bytes(kind, array.shape, struct.pack(f">{len(flat)}{code}", *flat))
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def stack(count: int, side: int = 6, classes: int = 2) -> tuple[Array, Array]:
    """Return uint8 [N, side, side], each picture another, and labels uint8 [N] in turn."""
    pictures = np.arange(count * side * side, dtype=np.uint32).reshape(count, side, side)
    return (pictures % 251).astype(np.uint8), (np.arange(count) % classes).astype(np.uint8)


def fashion(root: Path, train: int = 12, test: int = 4, classes: int = 2) -> Path:
    root.mkdir(exist_ok=True)
    for (images, labels), count in ((FILES[:2], train), (FILES[2:], test)):
        pictures, own = stack(count, classes=classes)
        write_idx(root / images, pictures + (count == test))
        write_idx(root / labels, own)
    return root


def own(root: Path, **other: Array) -> Path:
    """Write own.npz with eight and four pictures; ``other`` arrays replace those."""
    both = (*stack(8), *stack(4))
    arrays: dict[str, Any] = dict(zip(NAMES, both, strict=True)) | other
    np.savez_compressed(root / "own.npz", **arrays)
    return root
