"""Engines of a board: a backbone's kit is fetched with it, and built once, before it runs.

Rules of this file: a release of a domain never causes a build. ``da3 build`` runs in a process of
its own, without the round's limit on memory, and goes on where it was cut off. Nobody holds the
store's lock meanwhile, and what runs goes on. If it fails, the backbone does not come to run.
"""

from __future__ import annotations

import json
from pathlib import Path

from toolchain.core.canonical import LIMIT_BYTES
from toolchain.core.errors import BuildError
from toolchain.core.files import (
    atomic_directory,
    is_file,
    link_or_copy,
    make_folder,
    read_limited,
)
from toolchain.core.sealed import SealedFile
from toolchain.core.timing import Notify
from toolchain.core.units import kit_file
from toolchain.device.agent.fetch import Fetcher
from toolchain.device.agent.process import command, started
from toolchain.device.boards.locate import here
from toolchain.device.boards.machine import Machine
from toolchain.device.engine.kit import KIT_NAME, KitManifest, open_kit
from toolchain.trust.release import SignedFile, SignedRelease
from toolchain.trust.unit import blob_place, manifest_place

_FLAVOUR = "swap"
"""The one that takes any domain's tensors; a kit without it is built whole."""


def kit_for(release: SignedRelease, machine: Machine) -> SignedFile | None:
    """Return the kit that a backbone's release has for this machine, None where it has none."""
    target = here(machine)
    return None if target is None else release.file(kit_file(target.name))


def fetch_kit(fetcher: Fetcher, release: SignedRelease, kit: SignedFile, folder: Path) -> Path:
    """Bring a kit into the new folder ``folder/kit-...`` and return that; verified as a whole.

    Raises RepositoryError, VerificationError, StorageError.
    """
    path = folder / kit.name.removesuffix(".json")
    make_folder(folder, fix="check the disk and the owner of the store")
    if is_file(path / KIT_NAME):
        return open_kit(path).path
    place = manifest_place(release.unit, kit.name, kit.digest)
    text = fetcher.file(place, kit.name, kit.digest, kit.size)
    data = read_limited(text, limit_bytes=LIMIT_BYTES, what="kit's manifest")
    entries: tuple[SealedFile, ...] = KitManifest.from_json(data).files
    parts = {
        entry.name: fetcher.file(blob_place(entry.digest), entry.name, entry.digest, entry.size)
        for entry in entries
    }
    with atomic_directory(path) as partial:
        (partial / KIT_NAME).write_bytes(data)
        for name, part in parts.items():
            link_or_copy(part, partial / name)
        open_kit(partial)
    for digest in (kit.digest, *(entry.digest for entry in entries)):
        fetcher.writer.drop_part(digest)
    return path


def build(kit: Path, folder: Path, told: Notify) -> None:
    """Build the engine of a kit into ``folder``. Raises BuildError with what ``da3 build`` said."""
    told(f"{kit.name}: building its engine; this takes minutes, once for each backbone")
    words = ["build", str(kit), "--engines", str(folder)]
    flavours = {item.flavour for item in open_kit(kit).manifest.flavours}
    if _FLAVOUR in flavours:
        words += ["--flavour", _FLAVOUR]
    with started(command(*words, "--json"), memory_bytes=None) as process:
        answer, _ = process.communicate()
    if process.returncode:
        raise BuildError(
            f"{kit.name}: {_reason(answer, process.returncode)}",
            fix=f"run it by hand: da3 {' '.join(words)}",
        )


def _reason(answer: bytes, code: int) -> str:
    try:
        return str(json.loads(answer)["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"da3 build ended with {code}"
