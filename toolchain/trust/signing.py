"""Signing a release: a unit's key says that this content is number N of the unit.

Rules of this file: the content is verified as a whole before it is signed, and the result is read
back before it appears. A counter is noted in the key's folder before the signature leaves, so that
no counter stands for two contents, whatever is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import Targets

from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.core.errors import SigningError
from toolchain.core.files import write_atomic
from toolchain.core.lock import locked
from toolchain.core.units import Unit
from toolchain.core.words import EXACT, TIME_FORMAT
from toolchain.trust import keys as keyfiles
from toolchain.trust import metadata as tuf
from toolchain.trust.content import Content, Kit, content_of, release_path
from toolchain.trust.keys import Issue, KeyRecord, Passphrase
from toolchain.trust.release import SignedRelease, read_release


@dataclass(frozen=True, kw_only=True)
class Signing:
    """What was signed, and the file that it was written to."""

    path: Path
    release: SignedRelease


def sign(
    path: Path,
    key: Path,
    *,
    kits: Sequence[Kit] = (),
    counter: int | None = None,
    days: int = tuf.RELEASE_DAYS,
    withdraw: bool = False,
    passphrase: Passphrase,
    now: datetime,
) -> Signing:
    """Sign the bundle or backbone folder ``path`` with the key in the folder ``key``.

    The release is written beside it, as ``<name>.release.json``. ``counter``: its number, by
    default the next one; ``days``: how long it is valid; ``withdraw``: sign that the unit
    has no release any more, and look at no content. Raises SigningError for a counter that is not
    above the last one, and for a key of another unit; what
    :func:`toolchain.trust.content.content_of` raises; StorageError.
    """
    record = _only_key(key)
    unit = keyfiles.unit_of(record)
    content = None if withdraw else _content_for(unit, key, path, kits)
    with locked(key / "lock", what=f"the key in {key}"):
        issued = keyfiles.read_issued(key)
        number = _counter(counter, issued.last, unit)
        role = _role(unit, content, number, tuf.ends(now, days))
        data = tuf.sign(role, [keyfiles.signer(key, record, passphrase)])
        release = read_release(unit, tuf.read(Targets, data, str(unit)).signed)
        issue = Issue(
            counter=number,
            digest=sha256(data),
            content=_content_digest(release),
            expires=role.expires.strftime(TIME_FORMAT),
        )
        keyfiles.note_issue(key, issued, issue)
    write_atomic(release_path(path), data, overwrite=True)
    return Signing(path=release_path(path), release=release)


def _role(unit: Unit, content: Content | None, number: int, expires: datetime) -> Targets:
    if content is None:
        return tuf.make_release(unit, number, expires, (), None, 0)
    files = content.files()
    return tuf.make_release(unit, number, expires, files, content.backbone, content.bytes)


def _content_digest(release: SignedRelease) -> str:
    return sha256(canonical_json({file.name: file.digest for file in release.files}))


def _content_for(unit: Unit, key: Path, path: Path, kits: Sequence[Kit]) -> Content:
    content = content_of(path, kits)
    if content.unit != unit:
        raise SigningError(
            f"{key}: expected a key of {content.unit}, got one of {unit}",
            fix=f"use keys/{content.unit}; if it has no key yet: da3 keys add",
        )
    return content


def _only_key(folder: Path) -> KeyRecord:
    """Return the key in ``folder``, which must hold one that can sign."""
    known = [one for one in keyfiles.records(folder) if keyfiles.has_private(folder, one)]
    if len(known) != 1:
        raise SigningError(
            f"{folder}: expected the folder of one key, got {len(known)} keys",
            fix="name the folder of a unit's key, such as keys/domains/cars; where a rotation was "
            "cut off, da3 keys renew DIR removes the key that does not count",
        )
    return known[0]


def _counter(wanted: int | None, last: int, unit: Unit) -> int:
    number = last + 1 if wanted is None else wanted
    if not last < number <= EXACT:
        raise SigningError(
            f"{unit}: expected a counter above {last}, which was issued last, got {number}",
            fix="leave --counter out; to go back, sign the old content under a new number",
        )
    return number
