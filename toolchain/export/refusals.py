"""What an export is refused for before PyTorch starts, which takes seconds.

Rules of this file: no torch and no onnx. It looks at names and at what a checkpoint says of itself.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from toolchain.core.errors import CheckpointError, ExistsError
from toolchain.core.files import exists, read_limited
from toolchain.core.words import to_json
from toolchain.recipe import Recipe
from toolchain.training.adapt.checkpoint import INFO_FILE, INFO_LIMIT_BYTES, Info, parse_info


def refuse_existing(path: Path) -> None:
    """Raise ExistsError early, before minutes of work end in it."""
    if exists(path):
        raise ExistsError(
            f"{path} exists", fix="pass --overwrite, or choose another folder with --dist"
        )


def trained_by(folder: Path) -> Info:
    """Return what the checkpoint in ``folder`` says of itself; its tensors are not read.

    Raises CheckpointError, StorageError.
    """
    path = folder / INFO_FILE
    return parse_info(path, read_limited(path, limit_bytes=INFO_LIMIT_BYTES, what="checkpoint"))


def refuse_foreign(
    folder: Path, info: Info, recipe: Recipe, classes: tuple[str, ...] | None = None
) -> None:
    """Refuse a checkpoint that another recipe trained: parity could not tell.

    ``classes``: those of the recipe's pictures, None where nobody has looked yet. Raises
    CheckpointError; where only values differ that ``--set`` changes, the fix passes them.
    """
    pairs = {
        "domain": (recipe.domain, info.domain),
        "backbone": (recipe.backbone, info.backbone.name),
        "method": (recipe.method, info.method),
        "classes": (info.classes if classes is None else classes, info.classes),
    }
    differ = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    values = dict(_values(recipe, info))
    if not differ and not values:
        return
    lines = [
        f"\n  {key}: the recipe says {_typed(want)}, the checkpoint {_typed(got)}"
        for key, (want, got) in (differ | values).items()
    ]
    fix = f"name the checkpoint of {recipe.domain!r}, or train it again with overwriting"
    if info.method != recipe.method:
        fix = f"export it as what it is, with --method {info.method}"
    elif not differ:
        settings = " ".join(
            f"--set {shlex.quote(f'{key}={_typed(got)}')}" for key, (_, got) in values.items()
        )
        fix = f"pass what it was trained with: {settings}; or train it again with overwriting"
    raise CheckpointError(f"{folder} was trained by another recipe{''.join(lines)}", fix=fix)


def _values(recipe: Recipe, info: Info) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the keys whose value is another one in the checkpoint, with both values."""
    sections: dict[str, tuple[Any, Any]] = {
        "adaptor": (recipe.adaptor, info.options),
        "preprocess": (recipe.preprocess, info.preprocess),
    }
    for section, (wanted, trained) in sections.items():
        for field in fields(wanted):
            pair = getattr(wanted, field.name), getattr(trained, field.name)
            if pair[0] != pair[1]:
                yield f"{section}.{field.name}", pair


def _typed(value: object) -> str:
    """Return ``value`` as it is written in a recipe."""
    return value if isinstance(value, str) else json.dumps(to_json(value), ensure_ascii=False)
