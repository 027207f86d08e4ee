"""What an export is refused for before PyTorch starts, which takes seconds.

Rules of this file: no torch and no onnx. It looks at names and at what a checkpoint says of itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from toolchain.core.errors import CheckpointError, ExistsError, first_few
from toolchain.core.files import exists, read_limited
from toolchain.recipe import Recipe
from toolchain.training.adapt.checkpoint import (
    INFO_FILE,
    INFO_LIMIT_BYTES,
    LISTED,
    Info,
    parse_info,
)
from toolchain.training.loop.identity import flat_texts, recipe_digest, training_texts

_NOT_THERE = "null"


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

    Every key that training depends on is compared, paths left out, so that the recipe in the bundle
    is the one that was trained. ``classes``: those of the recipe's pictures, None where nobody has
    looked yet. Raises CheckpointError; the fix names the options that make the recipe the one that
    was trained.
    """
    trained, now = info.recipe or _noted(info), training_texts(recipe)
    pairs = {key: (_plain(now, key), _plain(trained, key)) for key in _different(trained, recipe)}
    if classes is not None and classes != info.classes:
        pairs["classes"] = str(classes), str(info.classes)
    if not pairs:
        return
    lines = [
        f"\n  {key}: the recipe says {want}, the checkpoint {got}"
        for key, (want, got) in pairs.items()
    ]
    fix = f"name the checkpoint of {recipe.domain!r}, or train it again with overwriting"
    words = _options(trained, info, recipe)
    if words and not {"domain", "backbone", "classes"} & {*pairs}:
        fix = f"pass what it was trained with: {words}; or train it again with overwriting"
    raise CheckpointError(
        f"{folder} was trained by another recipe{first_few(lines, LISTED, '')}", fix=fix
    )


def hides_differences(info: Info, recipe: Recipe) -> bool:
    """Tell whether another text than ``recipe`` trained this, and nobody can say what differs.

    Checkpoints of earlier versions note the digest of their recipe, and few of its keys.
    """
    return not info.recipe and info.recipe_digest != recipe_digest(recipe)


def _options(trained: Mapping[str, str], info: Info, recipe: Recipe) -> str:
    """Return the options that make ``recipe`` the one that was trained, as they are typed."""
    words = []
    if recipe.method != info.method:
        words.append(f"--method {info.method}")
        recipe = recipe.by(info.method)
    words += [
        f"--set {shlex.quote(f'{key}={trained.get(key, _NOT_THERE)}')}"
        for key in _different(trained, recipe)
        # A checkpoint does not know in which folder the pictures lay.
        if key != "data.root"
    ]
    return " ".join(words)


def _noted(info: Info) -> Mapping[str, str]:
    """Return what a checkpoint from before it held its recipe says of that all the same."""
    return flat_texts(
        {
            "domain": info.domain,
            "backbone": info.backbone.name,
            "method": info.method,
            "adaptor": asdict(info.options),
            "preprocess": asdict(info.preprocess),
            "train": {"seed": info.seed},
        }
    )


def _different(trained: Mapping[str, str], recipe: Recipe) -> list[str]:
    """Return the keys in which ``recipe`` is another; an older checkpoint notes some keys only."""
    now = training_texts(recipe)
    keys = [*now, *(key for key in trained if key not in now)]
    if "data.loader" not in trained:
        keys = [key for key in keys if key in trained]
    wrong = [key for key in keys if now.get(key, _NOT_THERE) != trained.get(key, _NOT_THERE)]
    # The digest says which file it is. The same file under another name trains the same.
    return wrong if "weights_sha256" in wrong else [key for key in wrong if key != "weights"]


def _plain(texts: Mapping[str, str], key: str) -> str:
    return texts.get(key, _NOT_THERE).strip('"')
