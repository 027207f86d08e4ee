"""Ceremonies: how keys come into a keyring, change places, and go.

Rules of this file: each ceremony is one function and ends whole, or is repeated. The order is
always: new keys, then the metadata that trusts them, then the old keys go. What is cut off between
two steps leaves keys that no metadata trusts, and the next ceremony removes them. One process at a
time works in a keyring. Devices learn of a ceremony from the next publish.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.core.errors import ExistsError, UnknownNameError, UsageError
from toolchain.core.files import atomic_directory, exists, make_folder, write_atomic
from toolchain.core.lock import locked
from toolchain.core.units import BACKBONES, DOMAINS, Unit
from toolchain.core.words import TIME_FORMAT
from toolchain.trust import keys as keyfiles
from toolchain.trust import metadata as tuf
from toolchain.trust.keyring import Keyring, KeyringFacts, show
from toolchain.trust.keys import KeyRecord, Passphrase
from toolchain.trust.metadata import FLEET, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Delegated
from toolchain.trust.unit import METADATA

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

_SINGLE = (TARGETS, SNAPSHOT, TIMESTAMP, FLEET)
_LOCK = "lock"


def init(
    path: Path,
    *,
    domains: Sequence[str] = (),
    backbones: Sequence[str] = (),
    passphrase: Passphrase,
    now: datetime,
) -> KeyringFacts:
    """Hold the first ceremony: make every key, and sign root and targets, in the new folder.

    Raises ExistsError, UsageError for a name that no unit can have, SigningError,
    MissingPackageError, StorageError.
    """
    units = [Unit(kind=DOMAINS, name=name) for name in domains]
    units += [Unit(kind=BACKBONES, name=name) for name in backbones]
    created = now.strftime(TIME_FORMAT)
    if exists(path):
        raise ExistsError(
            f"expected no folder at {path}, got one that is there",
            fix="choose another one; keys are replaced by da3 keys rotate, and by nothing else",
        )
    with atomic_directory(path) as partial:
        partial.chmod(0o700)
        made: dict[str, list[KeyRecord]] = {}
        for role in (*[ROOT] * tuf.ROOT_KEYS, *_SINGLE, *map(str, units)):
            record = keyfiles.generate(partial / role, role, passphrase, created=created)
            made.setdefault(role, []).append(record)
        public = {role: [one.public() for one in records] for role, records in made.items()}
        root = tuf.make_root(1, tuf.ends(now, tuf.DAYS[ROOT]), public, threshold=tuf.ROOT_THRESHOLD)
        delegated = Delegated(
            units={unit: public[str(unit)] for unit in units}, fleet=public[FLEET]
        )
        targets = tuf.make_targets(1, tuf.ends(now, tuf.DAYS[TARGETS]), delegated)
        signers = {
            role: [keyfiles.signer(partial / role, one, passphrase) for one in made[role]]
            for role in (ROOT, TARGETS)
        }
        _write(partial, ROOT, 1, tuf.sign(root, signers[ROOT]))
        _write(partial, TARGETS, 1, tuf.sign(targets, signers[TARGETS]))
    return show(path)


def add(
    path: Path, unit: Unit, *, passphrase: Passphrase, now: datetime, uri: str = ""
) -> KeyringFacts:
    """Make a key for a new ``unit``, or adopt the one at ``uri``, and let targets trust it.

    Raises UsageError for a unit that has a key, and as :func:`rotate`.
    """
    with _ceremony(path) as ring:
        if unit in ring.units():
            raise UsageError(
                f"{unit}: expected a unit without a key, got one that has it",
                fix=f"da3 keys rotate {path} {unit}",
            )
        _replace_unit(ring, unit, passphrase, now, uri)
    return show(path)


def rotate(
    path: Path, role: str, *, passphrase: Passphrase, now: datetime, uri: str = ""
) -> KeyringFacts:
    """Put new keys in the place of a role's; ``role`` is ``root``, ``domains/cars`` and the like.

    ``root/<12 hex>`` replaces one key of root, say a lost one. ``uri``: a key on a token or in a
    service instead of a new file. The old keys go at the end, as far as they are here. Raises
    UnknownNameError for another role, SigningError where keys to sign with are missing.
    """
    with _ceremony(path) as ring:
        known = [*tuf.TOP, FLEET, *map(str, ring.units())]
        name, _, one = role.partition("/") if role.startswith(f"{ROOT}/") else (role, "", "")
        if name not in known:
            raise UnknownNameError("role", role, known, fix="da3 keys show DIR lists them")
        if name in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP):
            _replace_top(ring, name, one, passphrase, now, uri)
        elif name == FLEET:
            signers = ring.signers(TARGETS, passphrase)
            record = _new(ring, FLEET, passphrase, now, uri)
            _sign_targets(ring, _delegated(ring, fleet=[record.public()]), signers, now)
        else:
            _replace_unit(ring, Unit.parse(name), passphrase, now, uri)
    return show(path)


def revoke(path: Path, unit: Unit, *, passphrase: Passphrase, now: datetime) -> KeyringFacts:
    """Trust no key for ``unit`` any more. Devices refuse its releases from the next publish on.

    Raises UnknownNameError for a unit without a key, SigningError without the key of targets.
    """
    with _ceremony(path) as ring:
        if unit not in ring.units():
            raise UnknownNameError("unit", str(unit), map(str, ring.units()))
        delegated = _delegated(ring)
        rest = {one: keys for one, keys in delegated.units.items() if one != unit}
        signers = ring.signers(TARGETS, passphrase)
        _sign_targets(ring, Delegated(units=rest, fleet=delegated.fleet), signers, now)
        for record in keyfiles.records(path / str(unit)):
            keyfiles.remove(path / str(unit), record)
    return show(path)


def renew(path: Path, *, passphrase: Passphrase, now: datetime) -> KeyringFacts:
    """Sign root and targets again, with the same keys, before they expire.

    Raises SigningError where two keys of root, or that of targets, are missing.
    """
    with _ceremony(path) as ring:
        keys = {role: ring.keys(role) for role in tuf.TOP}
        signers = ring.signers(TARGETS, passphrase)
        _sign_root(ring, keys, ring.signers(ROOT, passphrase, tuf.ROOT_THRESHOLD), now)
        _sign_targets(ring, _delegated(ring), signers, now)
    return show(path)


@contextmanager
def _ceremony(path: Path) -> Iterator[Keyring]:
    """Yield the opened keyring, alone at it; at the end remove the keys that no metadata trusts."""
    Keyring(path)
    with locked(path / _LOCK, what=f"the keys in {path}"):
        yield Keyring(path)
        after = Keyring(path)
        for role in (*tuf.TOP, FLEET, *map(str, after.units())):
            trusted = after.ids(role)
            for record in keyfiles.records(path / role):
                if record.keyid not in trusted:
                    keyfiles.remove(path / role, record)


def _new(ring: Keyring, role: str, passphrase: Passphrase, now: datetime, uri: str) -> KeyRecord:
    """Make a key for ``role`` beside those that are there, or adopt the one at ``uri``."""
    created = now.strftime(TIME_FORMAT)
    if uri:
        return keyfiles.adopt(ring.path / role, role, uri, passphrase, created=created)
    return keyfiles.generate(ring.path / role, role, passphrase, created=created)


def _replace_top(
    ring: Keyring, role: str, one: str, passphrase: Passphrase, now: datetime, uri: str
) -> None:
    """Replace the keys of a role that root names: all of them, or the one that begins with ``one``.

    A new root is signed by enough keys of the old one and of itself (TUF 6.1).
    """
    before = ring.keys(role)
    going = [key for key in before if key.keyid.startswith(one)]
    if not going:
        raise UnknownNameError("key of root", one, [key.keyid[:12] for key in before])
    signers = ring.signers(ROOT, passphrase, tuf.ROOT_THRESHOLD)
    made = [_new(ring, role, passphrase, now, uri) for _ in going]
    staying = [key for key in before if key not in going]
    keys: dict[str, Sequence[Key]] = {name: ring.keys(name) for name in tuf.TOP}
    keys[role] = [*staying, *(record.public() for record in made)]
    new = [keyfiles.signer(ring.path / role, record, passphrase) for record in made]
    _sign_root(ring, keys, [*signers, *(new if role == ROOT else [])], now)
    if role == TARGETS:
        _sign_targets(ring, _delegated(ring), new, now)


def _replace_unit(
    ring: Keyring, unit: Unit, passphrase: Passphrase, now: datetime, uri: str
) -> None:
    # Before the new key is made: a wrong passphrase shall leave nothing.
    signers = ring.signers(TARGETS, passphrase)
    record = _new(ring, str(unit), passphrase, now, uri)
    delegated = _delegated(ring)
    units = {**delegated.units, unit: [record.public()]}
    _sign_targets(ring, Delegated(units=units, fleet=delegated.fleet), signers, now)


def _delegated(ring: Keyring, fleet: Sequence[Key] | None = None) -> Delegated:
    """Return what targets says now, with another public key of the fleet if there is one."""
    return Delegated(
        units={unit: ring.keys(str(unit)) for unit in ring.units()},
        fleet=ring.keys(FLEET) if fleet is None else fleet,
    )


def _sign_root(
    ring: Keyring, keys: Mapping[str, Sequence[Key]], signers: Sequence[Signer], now: datetime
) -> None:
    version = ring.root.signed.version + 1
    expires = tuf.ends(now, tuf.DAYS[ROOT])
    root = tuf.make_root(version, expires, keys, threshold=tuf.ROOT_THRESHOLD)
    _write(ring.path, ROOT, version, tuf.sign(root, signers))


def _sign_targets(
    ring: Keyring, delegated: Delegated, signers: Sequence[Signer], now: datetime
) -> None:
    version = ring.targets.signed.version + 1
    targets = tuf.make_targets(version, tuf.ends(now, tuf.DAYS[TARGETS]), delegated)
    _write(ring.path, TARGETS, version, tuf.sign(targets, signers))


def _write(path: Path, role: str, version: int, data: bytes) -> None:
    make_folder(path / METADATA, fix="choose a folder that you may write")
    write_atomic(path / METADATA / f"{version}.{role}.json", data)
