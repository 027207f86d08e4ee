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
from toolchain.core.words import EXACT
from toolchain.trust import keys as keyfiles
from toolchain.trust import metadata as tuf
from toolchain.trust.content import Content, Kit, content_of, release_path
from toolchain.trust.keys import Issue, KeyRecord, Passphrase
from toolchain.trust.release import TIME_FORMAT, SignedRelease, read_release
from toolchain.trust.unit import Unit


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
    passphrase: Passphrase,
    now: datetime,
) -> Signing:
    """Sign the bundle or backbone folder ``path`` with the key in the folder ``key``.

    The release is written beside it, as ``<name>.release.json``. ``counter``: its number, by
    default the next one; ``days``: how long it is valid. Raises SigningError for a counter that is
    not above the last one, and for a key of another unit; what
    :func:`toolchain.trust.content.content_of` raises; StorageError.
    """
    content = content_of(path, kits)
    record = _only_key(key, content.unit)
    with locked(key / "lock", what=f"the key in {key}"):
        issued = keyfiles.read_issued(key)
        number = _counter(counter, issued.last, content.unit)
        role = _role(content, number, now, days)
        data = tuf.sign(role, [keyfiles.signer(key, record, passphrase)])
        release = read_release(content.unit, tuf.read(Targets, data, str(content.unit)).signed)
        issue = Issue(
            counter=number,
            digest=sha256(data),
            content=_content_digest(content),
            expires=role.expires.strftime(TIME_FORMAT),
        )
        keyfiles.note_issue(key, issued, issue)
    write_atomic(release_path(path), data, overwrite=True)
    return Signing(path=release_path(path), release=release)


def _role(content: Content, number: int, now: datetime, days: int) -> Targets:
    return tuf.make_release(
        content.unit,
        number,
        tuf.ends(now, days),
        content.files(),
        content.backbone,
        content.bytes,
    )


def _content_digest(content: Content) -> str:
    return sha256(canonical_json({file.name: file.digest for file in content.files()}))


def _only_key(folder: Path, unit: Unit) -> KeyRecord:
    """Return the key in ``folder``, which must be one of ``unit``."""
    known = [one for one in keyfiles.records(folder) if keyfiles.has_private(folder, one)]
    if len(known) != 1:
        raise SigningError(
            f"{folder}: expected the folder of one key, got {len(known)} keys",
            fix=f"name the folder of the unit's key, such as keys/{unit}",
        )
    if known[0].role != str(unit):
        raise SigningError(
            f"{folder}: expected a key of {unit}, got one of {known[0].role}",
            fix=f"use keys/{unit}; if it has no key yet: da3 keys add",
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
