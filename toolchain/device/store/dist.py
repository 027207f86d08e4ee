"""A folder as ``da3 export`` leaves it: bundles, and the backbones that they need beside them.

Rules of this file: names only; whoever loads a bundle or a backbone verifies it. A
name from outside is looked up among the files that are there and never joined to a path.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from toolchain import bundle
from toolchain.bundle.archive import BUNDLE_SUFFIX
from toolchain.core.errors import (
    DataError,
    StorageError,
    UnknownNameError,
    VerificationError,
)
from toolchain.core.words import DOMAIN
from toolchain.device.engine.cache import ENGINE_NAME, refuse_kit


def listed(folder: Path) -> dict[str, Path]:
    """Return the bundles right in ``folder`` by their files' names, sorted; there may be none."""
    paths = sorted(folder.glob(f"*{BUNDLE_SUFFIX}"))
    return {path.stem: path for path in paths if DOMAIN.accepts(path.stem) and path.is_file()}


def bundles(folder: Path) -> dict[str, Path]:
    """Return what :func:`listed` does. Raises DataError if there is none."""
    named = listed(folder)
    if not named:
        raise DataError(
            f"expected bundles (*{BUNDLE_SUFFIX}) in {folder}, found none",
            fix="da3 export --domain NAME, or name their folder",
        )
    return named


def find(folder: Path, name: str) -> Path:
    """Return the bundle of the domain ``name``. Raises UnknownNameError, and DataError."""
    known = bundles(folder)
    plain = unicodedata.normalize("NFC", name)
    if plain not in known:
        raise UnknownNameError("domain", name, known, fix=f"(bundles in {folder})")
    return known[plain]


def backbone_of(paths: Sequence[Path], where: Path | None = None) -> Path:
    """Return the folder of the backbone that the first readable bundle of ``paths`` needs.

    ``where`` is that folder, the folder of an engine, or holds it; by default it is looked for
    beside the bundle. If no bundle will do, it raises the error of the last one: DataError if the
    backbone is not there, BundleError and StorageError for a bundle that cannot be read.
    """
    for path in paths[:-1]:
        with suppress(DataError, VerificationError, StorageError):
            return _backbone_of(path, where)
    return _backbone_of(paths[-1], where)


def _backbone_of(path: Path, where: Path | None) -> Path:
    # An engine has the backbone inside; whether it is the bundle's shows when that is loaded.
    if where is not None and (where / ENGINE_NAME).is_file():
        return where
    if where is not None:
        refuse_kit(where)
    backbone = bundle.open_bundle(path).manifest.backbone
    return bundle.find_backbone(backbone, where or path.parent).path
