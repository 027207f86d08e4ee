"""Keys: one folder per role, with a public record and an encrypted private file for each key.

Rules of this file: the only code that writes or opens private keys. A key is ``<12 hex>.json``, the
public record, and ``<12 hex>.pem`` beside it: PKCS#8, encrypted, mode 0600 from its first byte
(RFC 5958). Instead of a file, the record may name a token or a service by URI. Which of the keys in
a folder counts is decided by signed metadata, never by a file here: so a new key can lie beside the
old one until the metadata has changed. A passphrase comes from a file, the environment or a person,
never from the command line, and no message holds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.core.errors import Fault, MissingPackageError, SigningError, UsageError
from toolchain.core.fields import ListOf, Section, SectionOf, choice, key, printable, text
from toolchain.core.files import is_file, make_folder, names, read_limited, write_atomic
from toolchain.core.units import Unit
from toolchain.core.words import DIGEST, NATURAL, TIME, Document
from toolchain.trust import hardware
from toolchain.trust.public import KEY_ID, PublicKey, public_key

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer, SSlibKey

ENVIRONMENT = "DA3_KEY_PASSPHRASE"
SHORTEST_PASSPHRASE = 12
ISSUED_NAME = "issued.json"
_LIMIT_PEM_BYTES = 16 << 10
_LIMIT_ISSUED = 100_000

PASSPHRASE, PIN = "passphrase", "PIN"
_VARIABLES = {PASSPHRASE: ENVIRONMENT, PIN: "DA3_KEY_PIN"}

Passphrase = Callable[[str], str]
"""Gives a secret when it is needed first: ``"passphrase"`` of key files, ``"PIN"`` of a token."""


@dataclass(frozen=True, kw_only=True)
class KeyRecord(Document):
    """What lies beside a private key; ``public_key`` is the other half.

    ``uri`` is empty for a key in a file.
    """

    FILE = "key record"

    schema: str = key(choice("da3.key/1"))
    role: str = key(printable(200))
    keyid: str = key(KEY_ID)
    public_key: PublicKey = key(SectionOf(PublicKey))
    uri: str = key(text("a URI of at most 1000 characters", lambda value: len(value) <= 1000))
    created: str = key(TIME)

    def public(self) -> SSlibKey:
        """Return the key for python-tuf."""
        return self.public_key.of(self.keyid)


@dataclass(frozen=True, kw_only=True)
class Issue(Section):
    """One release that a key has signed: the digest is that of the signed metadata."""

    counter: int = key(NATURAL)
    digest: str = key(DIGEST)
    content: str = key(DIGEST)
    expires: str = key(TIME)


@dataclass(frozen=True, kw_only=True)
class Issued(Document):
    """Every release that the keys of a unit have signed, by rising counter."""

    FILE = ISSUED_NAME

    schema: str = key(choice("da3.issued/1"))
    releases: tuple[Issue, ...] = key(ListOf(SectionOf(Issue), 0, _LIMIT_ISSUED))

    @property
    def last(self) -> int:
        """The highest counter, 0 before the first release."""
        return self.releases[-1].counter if self.releases else 0

    def contradictions(self) -> Iterator[Fault]:
        """Yield a fault unless counters rise."""
        counters = [issue.counter for issue in self.releases]
        if counters != sorted(set(counters)):
            yield Fault("releases", "expected rising counters")


def passphrase_from(
    file: Path | None, environment: Mapping[str, str], ask: Callable[[str], str]
) -> Passphrase:
    """Return what gives secrets: a passphrase for key files, a PIN for a token.

    The passphrase is the first line of ``file``, else ``DA3_KEY_PASSPHRASE``; the PIN is
    ``DA3_KEY_PIN``; else ``ask`` is asked. Each is asked for when it is needed, and once only.
    """
    known: dict[str, str] = {}

    def secret(kind: str) -> str:
        """Return the secret of that kind."""
        if kind not in known:
            if kind == PASSPHRASE and file is not None:
                known[kind] = _first_line(file)
            else:
                known[kind] = environment.get(_VARIABLES[kind]) or ask(kind)
        return known[kind]

    return secret


def _first_line(file: Path) -> str:
    data = read_limited(file, limit_bytes=4096, what="passphrase file")
    lines = data.decode("utf-8", "replace").splitlines()
    return lines[0] if lines else ""


def _long_enough(passphrase: str) -> bytes:
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise SigningError(
            f"expected a passphrase of at least {SHORTEST_PASSPHRASE} characters, got "
            f"{len(passphrase)}",
            fix="take five or six words at random: the file's form stretches them little "
            "(PBKDF2, 2,048 rounds), so their length is what protects it",
        )
    return passphrase.encode()


def generate(folder: Path, role: str, passphrase: Passphrase, *, created: str) -> KeyRecord:
    """Make an Ed25519 key (RFC 8032) in ``folder`` and return its record.

    The private file is there before the record, so that no record is without its key. Raises
    SigningError for a short passphrase, MissingPackageError without `cryptography`, StorageError.
    """
    secret = _long_enough(passphrase(PASSPHRASE))
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from securesystemslib.signer import SSlibKey
    except ModuleNotFoundError as err:
        raise MissingPackageError("cryptography", "making keys", "sign") from err
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(secret),
    )
    record = _record(SSlibKey.from_crypto(private.public_key()), role, "", created)
    make_folder(folder, fix="choose a folder that you may write")
    folder.chmod(0o700)
    write_atomic(folder / f"{record.keyid[:12]}.pem", pem, mode=0o600)
    write_atomic(folder / _record_name(record), record.to_json())
    return record


def adopt(folder: Path, role: str, uri: str, passphrase: Passphrase, *, created: str) -> KeyRecord:
    """Write the record of a key that lies on a token or in a service, and return it.

    ``uri`` is one of :mod:`toolchain.trust.hardware`. Raises as its ``public_key`` does.
    """
    known_uri, public = hardware.public_key(uri, _pin(passphrase))
    record = _record(public, role, known_uri, created)
    make_folder(folder, fix="choose a folder that you may write")
    folder.chmod(0o700)
    write_atomic(folder / _record_name(record), record.to_json(), overwrite=True)
    return record


def _pin(passphrase: Passphrase) -> Callable[[], str]:
    return lambda: passphrase(PIN)


def _record(public: Key, role: str, uri: str, created: str) -> KeyRecord:
    return KeyRecord(
        schema="da3.key/1",
        role=role,
        keyid=public.keyid,
        public_key=PublicKey(**public_key(public)),
        uri=uri,
        created=created,
    )


def _record_name(record: KeyRecord) -> str:
    return f"{record.keyid[:12]}.json"


def records(folder: Path) -> tuple[KeyRecord, ...]:
    """Return the record of each key in ``folder``, oldest first.

    Raises BundleError, StorageError.
    """
    found = [
        KeyRecord.from_json(
            read_limited(folder / name, limit_bytes=KeyRecord.LIMIT_BYTES, what="key record")
        )
        for name in names(folder)
        if name.endswith(".json") and len(name) == 17
    ]
    return tuple(sorted(found, key=lambda record: (record.created, record.keyid)))


def has_private(folder: Path, record: KeyRecord) -> bool:
    """Whether the key can be used from here: its private file is there, or it has a URI."""
    return bool(record.uri) or is_file(folder / f"{record.keyid[:12]}.pem")


def signer(folder: Path, record: KeyRecord, passphrase: Passphrase) -> Signer:
    """Return the signer of a key in ``folder``.

    Raises SigningError for a private file that is missing, open to others or not of this key, and
    for a wrong passphrase; MissingPackageError without `cryptography`.
    """
    if record.uri:
        return hardware.signer(record.uri, record.public(), _pin(passphrase))
    path = folder / f"{record.keyid[:12]}.pem"
    pem = _private_bytes(path, record)
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.exceptions import KeyMismatchError
        from securesystemslib.signer import CryptoSigner
    except ModuleNotFoundError as err:
        raise MissingPackageError("cryptography", "signing", "sign") from err
    try:
        private: Any = load_pem_private_key(pem, passphrase(PASSPHRASE).encode())
        return CryptoSigner(private, record.public())
    except (ValueError, TypeError, KeyMismatchError) as err:
        raise SigningError(
            f"{path}: expected the private key of {record.role} and its passphrase, got others",
            fix=f"give the passphrase again: --passphrase-file FILE, or {ENVIRONMENT}",
        ) from err


def _private_bytes(path: Path, record: KeyRecord) -> bytes:
    if not is_file(path):
        raise SigningError(
            f"expected the private key of {record.role} at {path}, got none",
            fix=f"bring it from where it is kept; if it is lost: da3 keys rotate DIR {record.role}",
        )
    if path.stat().st_mode & 0o077:
        raise SigningError(
            f"{path}: expected a private key that its owner alone may read, got mode "
            f"{path.stat().st_mode & 0o777:04o}",
            fix=f"chmod 600 {path}; if others can have read it: da3 keys rotate DIR {record.role}",
        )
    return read_limited(path, limit_bytes=_LIMIT_PEM_BYTES, what="private key")


def remove(folder: Path, record: KeyRecord) -> None:
    """Remove a key from ``folder``, the private file first."""
    for name in (f"{record.keyid[:12]}.pem", _record_name(record)):
        (folder / name).unlink(missing_ok=True)


def read_issued(folder: Path) -> Issued:
    """Return what the keys in ``folder`` have signed. Raises BundleError, StorageError."""
    path = folder / ISSUED_NAME
    if not is_file(path):
        return Issued(schema="da3.issued/1", releases=())
    return Issued.from_json(
        read_limited(path, limit_bytes=Issued.LIMIT_BYTES, what="list of releases")
    )


def note_issue(folder: Path, issued: Issued, issue: Issue) -> None:
    """Add ``issue`` to the list in ``folder``; it is durable before a signature leaves the room."""
    longer = replace(issued, releases=(*issued.releases, issue))
    write_atomic(folder / ISSUED_NAME, longer.to_json(), overwrite=True)


def unit_of(record: KeyRecord) -> Unit:
    """Return the unit that a key signs for. Raises SigningError for a key of another role."""
    try:
        return Unit.parse(record.role)
    except UsageError as err:
        raise SigningError(
            f"expected the key of a domain or a backbone, got one of {record.role}",
            fix="name the folder of a unit's key, such as keys/domains/cars",
        ) from err
