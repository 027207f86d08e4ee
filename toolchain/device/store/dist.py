"""A folder as ``da3 export`` leaves it: bundles, and the backbones that they need beside them.

Rules of this file: it chooses, and loads nothing; whoever loads a bundle or a backbone verifies it.
A name from outside is looked up among the files that are there and never joined to a path.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain import bundle
from toolchain.bundle import BackboneRef
from toolchain.bundle.archive import BUNDLE_SUFFIX
from toolchain.bundle.linkage import SWAP_IF
from toolchain.core.errors import (
    Da3Error,
    DataError,
    StorageError,
    UnknownNameError,
    UsageError,
    VerificationError,
)
from toolchain.core.files import is_file, names
from toolchain.core.words import LOADED
from toolchain.device.engine.cache import ENGINE_NAME, refuse_kit


def listed(folder: Path) -> dict[str, Path]:
    """Return the bundles right in ``folder`` by their files' names, sorted; there may be none."""
    paths = [folder / name for name in names(folder) if name.endswith(BUNDLE_SUFFIX)]
    return {path.stem: path for path in paths if LOADED.accepts(path.stem) and is_file(path)}


def unusable(folder: Path) -> dict[Path, UsageError]:
    """Return what is named as a bundle right in ``folder`` and is none, and what to do.

    No model can be called as it is, or it is no file: a folder, a pipe, a link that leads nowhere.
    The messages name no path, because clients of a server read them.
    """
    faults = {}
    for name in names(folder):
        path = folder / name
        # A name with a dot in front is hidden on purpose, or half-written.
        if not name.endswith(BUNDLE_SUFFIX) or name.startswith("."):
            continue
        if not is_file(path):
            faults[path] = UsageError(
                "expected a bundle, got no file: a folder, a pipe or a link that leads nowhere",
                fix="remove it, or put the file there",
            )
        elif not LOADED.accepts(path.stem):
            faults[path] = UsageError(
                f"expected a file that a model can be called as, got {path.stem!r:.80}",
                fix=f"rename it: {LOADED.expected}",
            )
    return faults


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


@dataclass(frozen=True, slots=True)
class Needs:
    """What the bundle ``path`` needs to run, by digests.

    ``size``: side of its pictures. ``graphs``: of its linked graphs that take any domain's tensors;
    bundles of equal ones share a session. ``weights``: of its patched weights, empty for the
    backbone's own.
    """

    path: Path
    backbone: BackboneRef
    size: int
    graphs: tuple[str, ...]
    weights: str


@dataclass(frozen=True, slots=True)
class BundleNeeds:
    """What bundles need before any is loaded; ``refused``: those that cannot be read, and why."""

    needs: tuple[Needs, ...]
    refused: Mapping[Path, Da3Error]

    def in_order(self) -> tuple[Path, ...]:
        """Return the bundles in the order in which to load them, so that most of them run.

        A runner may hold few sessions. Those that share one come first, the most of them before
        fewer; those that change the backbone come last, as nobody shares their session.
        """
        groups = Counter((one.weights, one.graphs) for one in self.needs)

        def place(one: Needs) -> tuple[bool, int, tuple[str, ...]]:
            return bool(one.weights), -groups[one.weights, one.graphs], one.graphs

        # Sorting is stable: equal ones stay in the order in which they came.
        return tuple(one.path for one in sorted(self.needs, key=place))

    def backbone(self, where: Path | None = None) -> Path:
        """Return the folder of the backbone that most of the bundles need.

        ``where`` is that folder, the folder of an engine, or holds it; by default it is looked for
        beside each bundle. If there is none for any bundle, it raises the error of the last one:
        DataError if the backbone is not there, BundleError and StorageError for a bundle that
        cannot be read.
        """
        # An engine has the backbone inside; whether it is the bundles' shows when they are loaded.
        if where is not None and is_file(where / ENGINE_NAME):
            return where
        if where is not None:
            refuse_kit(where)
        error = next(reversed([*self.refused.values()]), None)
        users = Counter(_identity(one.backbone) for one in self.needs)
        for one in sorted(self.needs, key=lambda one: -users[_identity(one.backbone)]):
            try:
                folder = where or one.path.parent
                return bundle.find_backbone(one.backbone, one.size, folder).path
            except (DataError, VerificationError, StorageError) as err:
                error = err
        raise error or UsageError("expected a bundle, got none", fix="name one")


def survey(paths: Sequence[Path]) -> BundleNeeds:
    """Open every bundle of ``paths``, verified, and note what it needs; nothing of it is kept.

    Loading verifies a bundle anew, so an order that is wrong by then costs a session at most.
    """
    needs: list[Needs] = []
    refused: dict[Path, Da3Error] = {}
    for path in paths:
        try:
            manifest = bundle.open_bundle(path).manifest
        except Da3Error as err:
            # Its frames would keep alive the bytes that were read.
            refused[path] = err.with_traceback(None)
            err.__cause__ = err.__context__ = None
            continue
        graphs = tuple(entry.digest for entry in manifest.files if entry.role == SWAP_IF.role)
        weights = "" if manifest.patch is None else manifest.patch.digest
        needs.append(Needs(path, manifest.backbone, manifest.preprocess.size, graphs, weights))
    return BundleNeeds(tuple(needs), refused)


def _identity(backbone: BackboneRef) -> tuple[str, str]:
    return backbone.weights_digest, backbone.graph_digest
