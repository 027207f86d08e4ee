"""The keyring: the folder of a repository's keys, and the root and targets that they have signed.

Rules of this file: it reads the folder and changes nothing; :mod:`toolchain.trust.ceremonies` does.
Signed metadata says which keys count. The folder may be taken apart: who signs asks only for the
keys that are needed, and is told which are missing.

::

    keys/root/        three keys, two of which sign          keep on three media
    keys/targets/     says which key a unit has              offline
    keys/domains/cars/, keys/backbones/resnet20/             offline, one owner each
    keys/snapshot/, keys/timestamp/, keys/fleet/             online
    keys/metadata/    1.root.json ..., 1.targets.json ...    public
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuf.api.metadata import Metadata, Root, Targets

from toolchain.core.errors import DataError, SigningError, first_few
from toolchain.core.units import Unit
from toolchain.core.words import TIME_FORMAT
from toolchain.trust import keys as keyfiles
from toolchain.trust import metadata as tuf
from toolchain.trust.assignment import fleet_of
from toolchain.trust.keys import KeyRecord, Passphrase
from toolchain.trust.metadata import FLEET, ROOT, TARGETS
from toolchain.trust.state import metadata_file, versions
from toolchain.trust.unit import METADATA

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer


@dataclass(frozen=True, kw_only=True)
class KeyFacts:
    """One trusted key, for people. ``where``: ``file``, a URI, or ``elsewhere``."""

    role: str
    keyid: str
    scheme: str
    where: str
    created: str


@dataclass(frozen=True, kw_only=True)
class RoleFacts:
    """A role: how many of its keys must sign; ``expires`` of what it signed last, "" if not known.

    ``counter``: version of that metadata; for a unit the last counter that was issued here.
    """

    role: str
    threshold: int
    counter: int
    expires: str
    keys: tuple[KeyFacts, ...]


@dataclass(frozen=True, kw_only=True)
class KeyringFacts:
    """What ``da3 keys show`` shows."""

    path: Path
    roles: tuple[RoleFacts, ...]


class Keyring:
    """An opened keyring; ``root`` and ``targets`` are the newest ones in it."""

    def __init__(self, path: Path) -> None:
        """Open the folder ``path``. Raises DataError where it is none, TrustError, StorageError."""
        self.path = path
        versions = self._versions(ROOT)
        if not versions:
            raise DataError(
                f"expected a folder of keys with metadata/1.root.json, got {path}",
                fix=f"make one: da3 keys init {path}",
            )
        self.root: Metadata[Root] = tuf.read(Root, self._file(ROOT, versions[-1]), "root")
        newest = self._versions(TARGETS)[-1:]
        if not newest:
            raise DataError(
                f"{path}: expected metadata/1.targets.json beside the root, got none",
                fix="copy the whole folder metadata/",
            )
        self.targets: Metadata[Targets] = tuf.read(
            Targets, self._file(TARGETS, newest[0]), "targets"
        )

    def roots(self) -> dict[int, bytes]:
        """Return every root by version, as devices walk from the one they know to the newest."""
        return {version: self._file(ROOT, version) for version in self._versions(ROOT)}

    def targets_bytes(self) -> bytes:
        """Return the newest targets metadata as it was signed."""
        return self._file(TARGETS, self.targets.signed.version)

    def units(self) -> tuple[Unit, ...]:
        """Return the units that have a trusted key, sorted."""
        delegations = self.targets.signed.delegations
        roles = (delegations.roles if delegations else None) or {}
        return tuple(sorted(map(Unit.of_role, roles)))

    def ids(self, role: str) -> tuple[str, ...]:
        """Return the ids of the keys that are trusted for ``root``, ``domains/cars``, ``fleet``."""
        if role == FLEET:
            return tuple(fleet_of(self.targets.signed))
        if role in tuf.TOP:
            return tuple(tuf.trusted_ids(self.root.signed, role))
        return tuple(tuf.trusted_ids(self.targets.signed, Unit.parse(role).role))

    def signers(self, role: str, passphrase: Passphrase, need: int = 1) -> list[Signer]:
        """Return signers of the trusted keys of ``role`` that are here, at least ``need``.

        Raises SigningError that names the missing ones.
        """
        return signers_in(self.path / role, role, self.ids(role), passphrase, need)

    def keys(self, role: str) -> list[Key]:
        """Return the trusted public keys of ``role``, as the metadata has them."""
        if role == FLEET:
            return [key.of(keyid) for keyid, key in fleet_of(self.targets.signed).items()]
        source = self.root.signed if role in tuf.TOP else self.targets.signed
        return [source.get_key(keyid) for keyid in self.ids(role)]

    def _versions(self, role: str) -> list[int]:
        return versions(self.path / METADATA, role)

    def _file(self, role: str, version: int) -> bytes:
        return metadata_file(self.path / METADATA / f"{version}.{role}.json")


def show(path: Path) -> KeyringFacts:
    """Return what is in the keyring: roles, keys, where these are, and when each role expires."""
    ring = Keyring(path)
    roles = [*tuf.TOP, FLEET, *map(str, ring.units())]
    return KeyringFacts(path=path, roles=tuple(_role_facts(ring, role) for role in roles))


def _role_facts(ring: Keyring, role: str) -> RoleFacts:
    folder = ring.path / role
    known = {record.keyid: record for record in keyfiles.records(folder)}
    facts = tuple(_key_facts(folder, role, key, known.get(key.keyid)) for key in ring.keys(role))
    threshold = ring.root.signed.roles[role].threshold if role in tuf.TOP else 1
    counter, expires = 0, ""
    if role in (ROOT, TARGETS):
        signed = ring.root.signed if role == ROOT else ring.targets.signed
        counter, expires = signed.version, signed.expires.strftime(TIME_FORMAT)
    elif role not in (*tuf.TOP, FLEET) and (last := keyfiles.read_issued(folder).releases[-1:]):
        counter, expires = last[0].counter, last[0].expires
    return RoleFacts(role=role, threshold=threshold, counter=counter, expires=expires, keys=facts)


def _key_facts(folder: Path, role: str, key: Key, record: KeyRecord | None) -> KeyFacts:
    here = record is not None and keyfiles.has_private(folder, record)
    where = "elsewhere" if record is None or not here else record.uri or "file"
    created = record.created if record else ""
    return KeyFacts(role=role, keyid=key.keyid, scheme=key.scheme, where=where, created=created)


def signers_in(
    folder: Path, role: str, ids: Sequence[str], passphrase: Passphrase, need: int
) -> list[Signer]:
    """Return signers of those keys of ``ids`` that lie in ``folder``.

    Raises SigningError for fewer than ``need``, naming those that are missing.
    """
    here = [
        record
        for record in keyfiles.records(folder)
        if record.keyid in ids and keyfiles.has_private(folder, record)
    ]
    if len(here) < need:
        missing = sorted({*ids} - {record.keyid for record in here})
        raise SigningError(
            f"expected {need} of the {len(ids)} keys of {role} in {folder}, got {len(here)}; "
            f"missing: {first_few([keyid[:12] for keyid in missing], 5)}",
            fix="bring them from where they are kept, as <12 hex>.json and <12 hex>.pem",
        )
    return [keyfiles.signer(folder, record, passphrase) for record in here]
