"""Built engines on disk, each under a key of everything that it depends on.

Rules of this file: schema ``da3.engine/1``, and the only code that writes or reads such a folder.
An engine is used only if every part of its key is equal. Otherwise the parts that differ are named,
with both values. Every file is listed with digest and size, and is hashed before the engine is
used, because TensorRT runs whatever a plan says. This file builds nothing and asks no device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.bundle.backbone import BackboneManifest
from toolchain.core.digest import short
from toolchain.core.errors import (
    BundleError,
    DataError,
    EngineError,
    EngineMismatchError,
    Fault,
    StorageError,
)
from toolchain.core.fields import ListOf, Nullable, Section, SectionOf, choice, key, whole
from toolchain.core.files import exists, is_file, write_atomic
from toolchain.core.sealed import SealedFile, SealedKind, SealedManifest, listing
from toolchain.core.words import (
    FILE_NAME,
    IDENTIFIER,
    NATURAL,
    NOTES,
    TENSOR_NAME,
    Notes,
    repeated,
)
from toolchain.device.engine.build import BuiltPlan
from toolchain.device.engine.key import EngineKey, KeyDifference, key_differences
from toolchain.device.engine.kit import (
    BACKBONE_NAME,
    KIT_NAME,
    LIMIT_FILES,
    ROLES,
    Kit,
    KitManifest,
)

SCHEMA = "da3.engine/1"
ENGINE_NAME = "engine.json"
LIMIT_PLAN_BYTES = 16 * 1024**3
VERDICTS = ("unproven", "skipping", "not skipping")
_REBUILD = "build it again: da3 build"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """No engine has the key.

    ``nearest``: the engine of the same kit whose key differs least, None if there is none.
    ``differences``: the parts of its key that differ.
    """

    nearest: Path | None
    differences: tuple[KeyDifference, ...]


@dataclass(frozen=True, slots=True)
class EngineFile(SealedFile):
    """One file of the engine with its digest and size in bytes."""

    size: int = key(whole(0, LIMIT_PLAN_BYTES))


@dataclass(frozen=True, slots=True)
class EnginePlan(Section):
    """One plan: role and site as in the kit, and the pairs of branch and tensor that were shown."""

    role: str = key(choice(*ROLES))
    site: str | None = key(Nullable(TENSOR_NAME))
    file: str = key(FILE_NAME)
    boundaries: int = key(NATURAL)


@dataclass(frozen=True, slots=True)
class EngineManifest(SealedManifest):
    """What an engine says about itself.

    ``name``: the backbone's; ``built_for``: the key. ``gates``: whether closed gates were shown to
    skip on this device; ``figures``: what was measured, ``made_by``: with what it was built.
    """

    FILE = ENGINE_NAME

    schema: str = key(choice(SCHEMA))
    name: str = key(IDENTIFIER)
    built_for: EngineKey = key(SectionOf(EngineKey))
    plans: tuple[EnginePlan, ...] = key(ListOf(SectionOf(EnginePlan), 1, LIMIT_FILES))
    files: tuple[EngineFile, ...] = key(ListOf(SectionOf(EngineFile), 3, LIMIT_FILES + 2))
    gates: str = key(choice(*VERDICTS))
    figures: Notes = key(NOTES)
    made_by: Notes = key(NOTES)

    def contradictions(self) -> Iterator[Fault]:
        """Yield the faults between fields that are right one by one."""
        names = {entry.name: entry.digest for entry in self.files}
        yield from repeated("files", (entry.name for entry in self.files))
        listed = {plan.file for plan in self.plans} | {KIT_NAME, BACKBONE_NAME}
        if set(names) != listed:
            odd = ", ".join(sorted(set(names) ^ listed)[:5])
            yield Fault("files", f"expected the plans, {KIT_NAME} and {BACKBONE_NAME}; see {odd}")
        elif names[KIT_NAME] != self.built_for.kit:
            yield Fault(
                "built_for.kit", f"expected the digest of {KIT_NAME}, got {self.built_for.kit}"
            )


ENGINE = SealedKind(what="engine", manifest_name=ENGINE_NAME, manifest=EngineManifest, fix=_REBUILD)


@dataclass(frozen=True, slots=True)
class EngineArtefact:
    """An engine whose files were all verified."""

    path: Path
    manifest: EngineManifest
    kit: KitManifest
    backbone: BackboneManifest

    def read(self, plan: EnginePlan) -> bytes:
        """Return a plan's bytes, hashed as they are read. Raises BundleError, StorageError."""
        return ENGINE.read(self.path, self.manifest.entry(plan.file))


def require(key_here: EngineKey, artefact: EngineArtefact) -> None:
    """Hold an engine against this machine. Raises EngineMismatchError naming what differs."""
    if differing := key_differences(key_here, artefact.manifest.built_for):
        lines = "".join(f"\n  {one}" for one in differing)
        raise EngineMismatchError(
            f"{artefact.path}: expected an engine for this machine and kit, got another one{lines}",
            fix=_REBUILD,
        )


@dataclass(frozen=True, slots=True)
class EngineStore:
    """The engines in one folder."""

    folder: Path

    def path(self, name: str, key: EngineKey) -> Path:
        """Return where the engine of a backbone with this key lies, or would."""
        return self.folder / f"engine-{name}-{key.flavour}-{short(key.digest())}"

    def find(self, key: EngineKey) -> Path | Mismatch:
        """Return the folder of the engine with exactly this key, or the nearest of its kit.

        Only manifests are read; :func:`open_engine` verifies. Folders that are no engine, or a
        damaged one, are passed over: they are not used, and building anew replaces them.
        """
        # Sorted, because each file system lists a folder in an order of its own.
        engines = sorted(self._stored(), key=lambda item: item[0])
        for path, stored in engines:
            if stored == key:
                return path
        near = [
            (len(differing), path, differing)
            for path, stored in engines
            if stored.kit == key.kit and (differing := key_differences(key, stored))
        ]
        if not near:
            return Mismatch(None, ())
        # Without the differences, which have no order.
        _, nearest, parts = min(near, key=lambda item: item[:2])
        return Mismatch(nearest, parts)

    def put(
        self,
        manifest: EngineManifest,
        plans: Mapping[str, BuiltPlan],
        kit: Kit,
        *,
        overwrite: bool = False,
    ) -> EngineArtefact:
        """Store ``plans`` by file name, with the kit's manifests; fills in ``manifest.files``.

        Raises EngineError for a plan that no device chose the tactics of, BundleError for a
        manifest that breaks the schema, as :func:`toolchain.core.files.atomic_directory` otherwise.
        """
        if loose := [name for name, built in plans.items() if built.cpu_only]:
            raise EngineError(
                f"expected plans that were built on a device, got {', '.join(loose[:5])} without",
                fix="build on the board; what a PC builds without a GPU is for checks alone",
            )
        contents = {
            **{name: built.plan for name, built in plans.items()},
            KIT_NAME: kit.manifest.to_json(),
            BACKBONE_NAME: kit.backbone.to_json(),
        }
        # Written and read back: a manifest that breaks the schema never reaches the disk.
        text = replace(manifest, files=listing(EngineFile, contents)).to_json()
        full = EngineManifest.from_json(text)
        path = self.path(full.name, full.built_for)
        ENGINE.write(path, full, contents, overwrite=overwrite)
        return EngineArtefact(path, full, kit.manifest, kit.backbone)

    def folders(self) -> list[Path]:
        """Return the folders of engines, sorted; :func:`open_engine` says whether one is whole."""
        return sorted(path for path in self.folder.glob("engine-*") if is_file(path / ENGINE_NAME))

    def _stored(self) -> Iterator[tuple[Path, EngineKey]]:
        for path in self.folder.glob("engine-*"):
            with suppress(BundleError, DataError, StorageError):
                yield path, _manifest(path).built_for


def open_engine(path: Path) -> EngineArtefact:
    """Return the engine in the folder ``path``, all of it verified by hashing.

    Raises BundleError for a manifest that breaks the schema, and for files that are missing, not
    listed, links, or not what the manifest says; DataError for a folder that is no engine,
    StorageError if the file system refuses.
    """
    _require_engine(path)
    manifest, _ = ENGINE.open(path)
    with ENGINE.reading(path):
        kit = KitManifest.from_json(ENGINE.read(path, manifest.entry(KIT_NAME)))
        backbone = BackboneManifest.from_json(ENGINE.read(path, manifest.entry(BACKBONE_NAME)))
    return EngineArtefact(path, manifest, kit, backbone)


def refuse_kit(path: Path) -> None:
    """Raise DataError for a kit, which is what an engine is built from and cannot run."""
    if is_file(path / KIT_NAME) and not is_file(path / ENGINE_NAME):
        raise DataError(
            f"expected a backbone or an engine, got the kit {path}",
            fix=f"da3 build {path}, and name the engine that it makes",
        )


def mark(path: Path, gates: str, figures: Notes) -> EngineManifest:
    """Write down whether closed gates skip, and what was measured; returns the new manifest.

    The plans stay as they are. Raises DataError for a folder that is no engine, BundleError for a
    damaged one or a verdict that there is not, StorageError.
    """
    changed = replace(_manifest(path), gates=gates, figures=figures)
    text = changed.to_json()
    full = EngineManifest.from_json(text)
    write_atomic(path / ENGINE_NAME, text, overwrite=True)
    return full


def _manifest(path: Path) -> EngineManifest:
    _require_engine(path)
    manifest, _ = ENGINE.read_manifest(path)
    return manifest


def _require_engine(path: Path) -> None:
    """Raise DataError for a folder that is no engine, BundleError for a link to one."""
    file = path / ENGINE_NAME
    # A link to nothing does not exist, and is refused below all the same.
    if not exists(file) and not file.is_symlink():
        kit = is_file(path / KIT_NAME)
        raise DataError(
            f"expected an engine, a folder with {ENGINE_NAME}, got {'the kit ' * kit}{path}",
            fix=f"da3 build {path} makes an engine of it" if kit else "da3 build KIT makes one",
        )
    if path.is_symlink() or file.is_symlink():
        raise BundleError(
            f"{file}: expected a regular file in a directory, got a link", fix=_REBUILD
        )
