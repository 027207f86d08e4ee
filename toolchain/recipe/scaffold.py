"""A first recipe for a user's own folder of pictures.

Rules of this file: everything is read before anything is written. The header says what was read, so
that the file explains itself. The folder of pictures is not changed.
"""

from __future__ import annotations

import shlex
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from toolchain.core.errors import ExistsError, StorageError, UsageError, first_few
from toolchain.core.fields import show
from toolchain.core.files import exists, write_atomic
from toolchain.core.words import is_domain_name
from toolchain.pictures.preprocess import Preprocessing
from toolchain.recipe.examined import examine
from toolchain.recipe.library import SUFFIX, dump, loads
from toolchain.recipe.listing import look
from toolchain.recipe.spec import (
    DOMAIN_NAME,
    DRAWN,
    AdaptorOptions,
    DataSpec,
    Recipe,
    TrainSpec,
)

BATCH = 32
STEPS = 1200
_LISTED_CLASSES = 40
_SMALL = 64
"""Pixels: a backbone of this side or less sees whole pictures, and its maps are small."""
Channels = tuple[float, float, float]
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Contents(Protocol):
    """What data are, as far as a recipe's header says it."""

    def lines(self) -> list[str]:
        """Return for people what there is, and what is left out."""

    def counts(self) -> list[dict[str, int | str]]:
        """Return for each class its name and the number of its pictures per part."""


def new(
    name: str,
    data: Path | Contents,
    *,
    backbone: str,
    spec: DataSpec | None = None,
    input_px: int = 32,
    mean: Channels | None = None,
    std: Channels | None = None,
    interpolation: str | None = None,
    resize: int | None = None,
    folder: Path = Path("recipes"),
    overwrite: bool = False,
) -> Path:
    """Write a complete recipe for the pictures in ``data`` and return its path.

    ``data`` is an image folder, or what was read of data, of which ``spec`` is the recipe's section
    (`toolchain.training.data.first_look` gives both). ``input_px`` is the side that the backbone
    was trained with, as are ``mean``, ``std``, ``interpolation`` and ``resize``; for what is None a
    usual value is written, and the header says so. The recipe is ``folder``/``name``.yaml and loads
    as it is. Raises UsageError for a name that cannot be one, DataError for unusable pictures,
    ExistsError for an existing recipe, RecipeError for a backbone's name that cannot be one,
    StorageError where the file system refuses.
    """
    path = place(name, folder, overwrite=overwrite)
    name = path.stem
    if isinstance(data, Path):
        spec = DataSpec("folder", str(data), train=None, test=None, seed=1)
        data = examine(look(data))
    if spec is None:
        raise UsageError(
            "expected spec beside what was read of data", fix="pass what first_look says"
        )
    stated: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "resize": resize,
    }
    known = {key: value for key, value in stated.items() if value is not None}
    guessed = [key for key in stated if key not in known]
    header = _header(build_command(path), spec, data, guessed)
    preprocess = replace(_preprocess(input_px), **known)
    there = sum(int(count["train"]) for count in data.counts())
    pictures = there if spec.train is None else min(there, spec.train)
    text = dump(_recipe(name, spec, pictures, backbone, preprocess), header)
    loads(text, where=f"{name}{SUFFIX}", stem=name)
    _make(folder)
    write_atomic(path, text.encode(), overwrite=overwrite)
    return path


def build_command(path: Path) -> str:
    """Return the command that trains and exports the recipe at ``path``, from where we stand."""
    if path.parent == Path("recipes"):
        return f"da3-export --train --domain {shlex.quote(path.stem)}"
    return f"da3-export --train --recipe {shlex.quote(str(path))}"


def place(name: str, folder: Path, *, overwrite: bool = False) -> Path:
    """Return where the recipe ``name`` goes, so that nobody waits for pictures to be refused.

    Raises UsageError for a name that cannot be one, ExistsError for an existing recipe.
    """
    name = unicodedata.normalize("NFC", name)
    if not is_domain_name(name):
        raise UsageError(f"expected {DOMAIN_NAME.expected}, got {show(name)}", fix=DOMAIN_NAME.fix)
    path = folder / f"{name}{SUFFIX}"
    if not overwrite and exists(path):
        raise ExistsError(
            f"expected no recipe at {path}, got an existing one",
            fix="choose another name or folder, or ask for overwriting",
        )
    return path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as err:
        raise StorageError(f"{folder}: cannot be made: {err.strerror}", fix="name another") from err


def _preprocess(side: int) -> Preprocessing:
    """Return what is usual for a backbone of this side, which says nothing itself."""
    mean, std = _HALF if side <= 32 else _IMAGENET
    return Preprocessing(
        size=side,
        # Larger nets are usually tested on the middle 224 of 256 pixels.
        resize=side if side <= _SMALL else side * 8 // 7,
        crop="center",
        interpolation="bilinear",
        colour="RGB",
        mean=mean,
        std=std,
    )


def _recipe(
    name: str, spec: DataSpec, pictures: int, backbone: str, preprocess: Preprocessing
) -> Recipe:
    small = preprocess.size <= _SMALL
    return Recipe(
        domain=name,
        title=f"{name}: own pictures",
        licence="not stated",
        backbone=backbone,
        weights=None,
        weights_sha256=None,
        data=spec,
        preprocess=preprocess,
        method="da3",
        # As in the samples: a small backbone's maps bear a finer grid and a 3x3 kernel.
        adaptor=AdaptorOptions(pool=2, kernel=3, rank=16) if small else AdaptorOptions(),
        train=TrainSpec(
            epochs=_epochs(pictures),
            batch=BATCH,
            lr=0.01,
            weight_decay=0.0001,
            seed=0,
            budget=0.65,
            budget_weight=30.0,
            augment=("shift", "flip"),
        ),
        golden=DRAWN,
    )


def _epochs(pictures: int) -> int:
    """Return enough epochs for ``STEPS`` steps: with fewer, gates hardly learn to close."""
    steps = max(1, -(-pictures // BATCH))
    return max(8, min(200, -(-STEPS // steps)))


def _header(command: str, spec: DataSpec, contents: Contents, guessed: list[str]) -> str:
    counts = contents.counts()
    classes = [
        f"{sum(n for n in count.values() if isinstance(n, int)):6d}  {count['name']}"
        for count in counts
    ]
    lines = [
        f"Build it:  {command}",
        "",
        f"Read from {spec.root}:",
        *(f"  {line}" for line in contents.lines()),
        f"  classes   {len(counts)}",
        "    " + first_few(classes, _LISTED_CLASSES, "\n    "),
    ]
    lines += ["", "Check before training: title, licence, and whether a mirrored picture is still"]
    lines += ["of its class (else remove flip from train.augment)."]
    if spec.classes:
        lines += ["The data have numbers for classes: write their names into data.classes."]
    if guessed:
        lines += [
            f"The backbone's package does not say what its training took for {', '.join(guessed)}:",
            "usual values stand below. Compare them with where the weights come from.",
        ]
    return "\n".join(lines)
