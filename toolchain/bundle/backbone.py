"""The backbone artefact: a directory with graph, weights and manifest, referenced by digest.

Rules of this file: schema ``da3.backbone/1`` and the only code that writes or reads such a
directory. Its name is made of the backbone's, the side of its pictures and the ``weights_digest``:
one backbone at two sizes is two artefacts, which lie side by side. It holds exactly four files:
graph, weights, manifest, and ``SHA256SUMS`` over the three, as coreutils' sha256sum writes it. So a
changed bit is found in the manifest as well.

``graph_digest`` binds graph and weights file, and hashing checks it. ``weights_digest`` is the
identity of the trained weights before the export. Folding changes the tensors, so nobody can
compute it again here. It is trusted because a bundle names both digests, and :func:`match` compares
both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.bundle.graphs import WEIGHTS_NAME
from toolchain.bundle.limits import MAX_BLOCKS, MAX_TAPS
from toolchain.bundle.manifest import MANIFEST_NAME, BackboneRef, Tap
from toolchain.core.canonical import LIMIT_BYTES, canonical_json
from toolchain.core.digest import sha256, short
from toolchain.core.errors import BackboneMismatchError, DataError, Fault, first_few
from toolchain.core.fields import ListOf, Section, SectionOf, choice, key, printable, whole
from toolchain.core.files import (
    atomic_directory,
    is_file,
    is_folder,
    link_or_copy,
    read_limited,
)
from toolchain.core.sealed import SealedFile, SealedKind, SealedManifest, listing
from toolchain.core.words import (
    BOOLEAN,
    DIGEST,
    IDENTIFIER,
    NATURAL,
    NOTES,
    SHAPE,
    TENSOR_NAME,
    Notes,
    raise_faults,
    repeated,
)

BACKBONE_SCHEMA = "da3.backbone/1"
GRAPH_NAME = "backbone.onnx"
SUMS_NAME = "SHA256SUMS"
LIMIT_FILE_BYTES = 8 * 1024**3


@dataclass(frozen=True, slots=True)
class BackboneFile(SealedFile):
    """One file of the artefact with its digest and size in bytes."""

    size: int = key(whole(0, LIMIT_FILE_BYTES))


@dataclass(frozen=True, slots=True)
class BackboneInput(Section):
    """The picture that the backbone takes: ``size`` pixels square."""

    size: int = key(whole(1, 4096))
    channels: int = key(whole(1, 1024))


@dataclass(frozen=True, slots=True)
class BackboneBlock(Section):
    """One block; shapes are per sample, ``flops`` per sample."""

    name: str = key(TENSOR_NAME)
    shape_in: tuple[int, ...] = key(SHAPE)
    shape_out: tuple[int, ...] = key(SHAPE)
    flops: int = key(NATURAL)
    gateable: bool = key(BOOLEAN)


@dataclass(frozen=True, slots=True)
class BackboneManifest(SealedManifest):
    """What a backbone artefact says about itself."""

    FILE = f"backbone {MANIFEST_NAME}"

    schema: str = key(choice(BACKBONE_SCHEMA))
    name: str = key(IDENTIFIER)
    weights_digest: str = key(DIGEST)
    graph_digest: str = key(DIGEST)
    input: BackboneInput = key(SectionOf(BackboneInput))
    opset: int = key(whole(1, 100))
    ir_version: int = key(whole(1, 100))
    files: tuple[BackboneFile, ...] = key(ListOf(SectionOf(BackboneFile), 2, 2))
    blocks: tuple[BackboneBlock, ...] = key(ListOf(SectionOf(BackboneBlock), 1, MAX_BLOCKS))
    taps: tuple[Tap, ...] = key(ListOf(SectionOf(Tap), 0, MAX_TAPS))
    licence: str = key(printable(200))
    provenance: Notes = key(NOTES)

    @property
    def flops(self) -> int:
        """Multiply-adds of all blocks for one picture."""
        return sum(block.flops for block in self.blocks)

    def contradictions(self) -> Iterator[Fault]:
        """Yield the faults between fields that are right one by one."""
        files = {entry.name: entry.digest for entry in self.files}
        if list(files) != [GRAPH_NAME, WEIGHTS_NAME]:
            got = ", ".join(files)
            yield Fault("files", f"expected {GRAPH_NAME} and {WEIGHTS_NAME}, got {got}")
        elif self.graph_digest != (actual := graph_digest(*files.values())):
            yield Fault("graph_digest", f"expected {self.graph_digest}, the files give {actual}")
        yield from repeated("blocks", (block.name for block in self.blocks))
        yield from repeated("taps", (tap.name for tap in self.taps))


ARTEFACT = SealedKind(
    what="backbone",
    manifest_name=MANIFEST_NAME,
    manifest=BackboneManifest,
    fix="export the backbone again",
    beside=(SUMS_NAME,),
)


@dataclass(frozen=True, slots=True)
class BackboneArtefact:
    """A verified artefact; the paths are those of its two files."""

    path: Path
    manifest: BackboneManifest

    @property
    def graph_path(self) -> Path:
        """The ONNX graph, whose external data is the weights file beside it."""
        return self.path / GRAPH_NAME

    @property
    def weights_path(self) -> Path:
        """The weights as safetensors."""
        return self.path / WEIGHTS_NAME

    @property
    def weights_bytes(self) -> int:
        """Size of the weights file, as the manifest lists it."""
        return self.manifest.entry(WEIGHTS_NAME).size

    def weights(self) -> bytes:
        """Return the weights file's bytes, verified. Raises BundleError, StorageError."""
        return ARTEFACT.read(self.path, self.manifest.entry(WEIGHTS_NAME))


def artefact_name(name: str, size: int, weights_digest: str) -> str:
    """Return the directory name ``backbone-<name>-<size>px-<12 hex of weights_digest>``.

    ``size``: side of the pictures in pixels. The graph depends on it, so it is part of the name.
    """
    return f"backbone-{name}-{size}px-{short(weights_digest)}"


def graph_digest(graph: str, weights: str) -> str:
    """Return the digest of an exported backbone from the digests of its two files.

    It is the sha256 over the RFC 8785 JSON of ``{"graph": ..., "weights": ...}``.
    """
    return sha256(canonical_json({"graph": graph, "weights": weights}))


def find_backbone(reference: BackboneRef, size: int, folder: Path) -> BackboneArtefact:
    """Return the verified artefact that a domain needs; ``folder`` is it, or holds it.

    ``size``: side of the domain's pictures. Raises DataError saying where it was looked for, and
    what :func:`open_backbone` raises.
    """
    if is_file(folder / MANIFEST_NAME):
        return open_backbone(folder)
    candidate = folder / artefact_name(reference.name, size, reference.weights_digest)
    # Artefacts had no size in their names before; whether one is of this size shows by its digest.
    before = folder / f"backbone-{reference.name}-{short(reference.weights_digest)}"
    if not is_folder(candidate) and is_folder(before):
        return open_backbone(before)
    if not is_folder(candidate):
        raise DataError(
            f"expected the backbone {candidate.name} at {candidate}, found nothing",
            fix="copy it there, or name its folder with --backbone DIR",
        )
    return open_backbone(candidate)


def write_backbone(
    folder: str | Path,
    manifest: BackboneManifest,
    *,
    graph: bytes,
    weights: bytes,
    overwrite: bool = False,
) -> BackboneArtefact:
    """Write the artefact's directory into ``folder`` and return it; same inputs, same bytes.

    ``files`` and ``graph_digest`` of ``manifest`` are filled in from the bytes. Raises
    BundleError for a manifest that breaks the schema, ExistsError and StorageError as
    :func:`toolchain.core.files.atomic_directory`.
    """
    contents = {GRAPH_NAME: graph, WEIGHTS_NAME: weights}
    files = listing(BackboneFile, contents)
    both = graph_digest(files[0].digest, files[1].digest)
    text = replace(manifest, files=files, graph_digest=both).to_json()
    full = BackboneManifest.from_json(text)
    path = Path(folder) / artefact_name(full.name, full.input.size, full.weights_digest)
    sums = _sums(full, sha256(text))
    ARTEFACT.write(path, full, {**contents, SUMS_NAME: sums}, overwrite=overwrite)
    return BackboneArtefact(path, full)


def assemble_backbone(folder: Path, text: bytes, files: Mapping[str, Path]) -> BackboneArtefact:
    """Make an artefact's directory in ``folder`` out of its manifest's bytes and its two files.

    The files are linked, not copied, where the file system can: they may be large. Raises
    BundleError for a manifest that breaks the schema and for files that are not those it lists,
    ExistsError and StorageError as :func:`toolchain.core.files.atomic_directory`.
    """
    manifest = BackboneManifest.from_json(text)
    path = folder / artefact_name(manifest.name, manifest.input.size, manifest.weights_digest)
    with atomic_directory(path) as partial:
        (partial / MANIFEST_NAME).write_bytes(text)
        (partial / SUMS_NAME).write_bytes(_sums(manifest, sha256(text)))
        for entry in manifest.files:
            link_or_copy(files[entry.name], partial / entry.name)
        open_backbone(partial)
    return BackboneArtefact(path, manifest)


def open_backbone(path: str | Path) -> BackboneArtefact:
    """Return the artefact in the directory ``path``, all of it verified by hashing.

    Raises BundleError for a directory that is a link, a manifest that breaks the schema, files that
    are missing, not expected, not regular or not what the manifest says; StorageError if there is
    no such directory or the file system refuses.
    """
    path = Path(path)
    with ARTEFACT.reading(path):
        raise_faults("files", _text_faults(path))
    manifest, digest = ARTEFACT.open(path)
    with ARTEFACT.reading(path):
        # The sums cover the manifest's own bytes too, which no entry of it lists.
        raise_faults("files", _sums_faults(path, _sums(manifest, digest)))
    return BackboneArtefact(path, manifest)


def match(reference: BackboneRef, artefact: BackboneArtefact, domain: str) -> None:
    """Compare what a domain needs with a backbone: both digests must be equal, every tap there.

    Raises BackboneMismatchError that shows what each side has.
    """
    actual = artefact.manifest
    sides = {
        "weights_digest": (reference.weights_digest, actual.weights_digest),
        "graph_digest": (reference.graph_digest, actual.graph_digest),
    }
    lines = [
        f"\n  {key}: the bundle expects {want}\n  {' ' * len(key)}  the backbone has   {got}"
        for key, (want, got) in sides.items()
        if want != got
    ]
    lacking = [tap.name for tap in reference.taps if tap not in actual.taps]
    if lacking:
        lines.append(f"\n  the backbone lacks the taps {first_few(lacking, 3)}")
    if lines:
        raise BackboneMismatchError(
            f"{artefact.path}: expected the backbone {reference.name!r} of the bundle for "
            f"{domain!r}, got another one ({actual.name!r}){''.join(lines)}",
            fix=f"use the folder backbone-{reference.name}-*px-{short(reference.weights_digest)} "
            "that was exported with the domain, or export the domain for this backbone",
        )


def _sums(manifest: BackboneManifest, digest: str) -> bytes:
    """Return the SHA256SUMS of the other files; ``digest`` is that of the manifest's bytes."""
    digests = {entry.name: entry.digest for entry in manifest.files} | {MANIFEST_NAME: digest}
    lines = (f"{digests[name].removeprefix('sha256:')}  {name}\n" for name in sorted(digests))
    return "".join(lines).encode()


def _text_faults(path: Path) -> Iterator[Fault]:
    """Faults of manifest and checksums as files; without a directory, reading tells the fault."""
    for name in (MANIFEST_NAME, SUMS_NAME) if is_folder(path) else ():
        file = path / name
        if file.is_symlink() or not is_file(file):
            yield Fault(name, "expected a regular file, got none")
        elif (size := file.stat().st_size) > LIMIT_BYTES:
            yield Fault(name, f"expected at most {LIMIT_BYTES} bytes, got {size}")


def _sums_faults(path: Path, sums: bytes) -> Iterator[Fault]:
    text = read_limited(path / SUMS_NAME, limit_bytes=LIMIT_BYTES, what="backbone checksums")
    if text != sums:
        yield Fault(SUMS_NAME, f"expected the checksums of the files here, got {text!r:.100}")
