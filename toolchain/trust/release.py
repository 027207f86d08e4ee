"""A signed release: what the metadata of a unit's role says, read with every rule.

Rules of this file: values from metadata that python-tuf has verified, and from manifests; it opens
nothing. The counter of a release is the version of its role: one number, no second one. A role
lists what a release of its unit may have and nothing more. A role without a target withdraws the
unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolchain.core.canonical import LIMIT_BYTES
from toolchain.core.digest import sha256
from toolchain.core.errors import (
    DelegationError,
    Fault,
    MalformedError,
    TooLargeError,
    WrongReleaseError,
)
from toolchain.core.fields import Section, SectionOf, choice, key, read_section
from toolchain.core.sealed import SealedManifest
from toolchain.core.units import DOMAINS, BackboneId, Unit
from toolchain.core.words import (
    DIGEST,
    EXACT,
    NATURAL,
    TIME_FORMAT,
    raise_faults,
    to_json,
)

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile, Targets

    from toolchain.bundle.backbone import BackboneManifest
    from toolchain.bundle.manifest import Manifest

SCHEMA = "da3.release/1"
LIMIT_FILES = 64
# Says in the signed metadata itself whose release it is: a key may serve two units.
UNIT = "unit"
ASK_PUBLISHER = "tell who publishes the repository; nothing on this device was changed"


@dataclass(frozen=True, kw_only=True)
class _Custom(Section):
    """The field ``custom`` of a release's first target (TUF 4.5)."""

    schema: str = key(choice(SCHEMA))
    backbone: BackboneId = key(SectionOf(BackboneId))
    bytes: int = key(NATURAL)


@dataclass(frozen=True, kw_only=True)
class SignedFile:
    """One manifest that a release lists; ``digest`` is ``sha256:<hex>``, ``size`` in bytes."""

    name: str
    digest: str
    size: int


@dataclass(frozen=True, kw_only=True)
class SignedRelease:
    """A release as its unit's key signed it.

    ``expires``: RFC 3339, UTC. ``files``: manifests, the unit's own first; none where the unit is
    withdrawn. ``backbone``: the one that a domain needs, or that a backbone's release is.
    ``bytes``: of all manifests and of all files that they list.
    """

    unit: Unit
    counter: int
    expires: str
    files: tuple[SignedFile, ...]
    backbone: BackboneId | None
    bytes: int

    @property
    def withdrawn(self) -> bool:
        """Whether the unit has no release any more."""
        return not self.files

    @property
    def manifest(self) -> SignedFile:
        """The unit's own manifest. Raises WrongReleaseError for a unit that is withdrawn."""
        if not self.files:
            raise WrongReleaseError(
                f"{self.unit}: expected a release, got number {self.counter}, which withdraws it",
                fix="choose another unit, or keep what is installed",
            )
        return self.files[0]

    def file(self, name: str) -> SignedFile | None:
        """Return the manifest ``name`` of the release, such as a kit's; None if it has none."""
        return next((file for file in self.files if file.name == name), None)


def custom(backbone: BackboneId, size: int) -> dict[str, Any]:
    """Return the field ``custom`` of a release's manifest; ``size`` in bytes of all its files."""
    document: dict[str, Any] = to_json(_Custom(schema=SCHEMA, backbone=backbone, bytes=size))
    return document


def read_release(unit: Unit, role: Targets) -> SignedRelease:
    """Return the release that the verified metadata ``role`` of ``unit`` holds.

    Raises DelegationError for a role that delegates further or lists what is not the unit's,
    TooLargeError for too many files, MalformedError for a field that no writer of ours writes.
    """
    if role.delegations is not None:
        raise DelegationError(
            f"{unit}: expected a role that signs its own releases, got one that delegates further",
            fix=ASK_PUBLISHER,
        )
    if (said := role.unrecognized_fields.get(UNIT)) != str(unit):
        raise DelegationError(
            f"expected a release of {unit}, got one that says {said!r:.120}", fix=ASK_PUBLISHER
        )
    if len(role.targets) > LIMIT_FILES:
        raise TooLargeError(
            f"{unit}: expected at most {LIMIT_FILES} files, got {len(role.targets)}",
            fix=ASK_PUBLISHER,
        )
    strange = [path for path in role.targets if not _is_own(unit, path)]
    if strange:
        raise DelegationError(
            f"{unit}: expected {unit.target(unit.manifest)} and what belongs to it, got "
            f"{strange[0]!r:.120}",
            fix=ASK_PUBLISHER,
        )
    files = tuple(_signed_files(unit, role))
    about = _read_custom(unit, role.targets[unit.target(unit.manifest)]) if files else None
    return SignedRelease(
        unit=unit,
        counter=_whole(unit, "version", role.version),
        expires=role.expires.strftime(TIME_FORMAT),
        files=files,
        backbone=None if about is None else about.backbone,
        bytes=0 if about is None else about.bytes,
    )


def check_manifest(release: SignedRelease, data: bytes) -> Manifest | BackboneManifest:
    """Return the manifest whose bytes are ``data``, if it is the one that ``release`` signs.

    Raises WrongReleaseError for other bytes, and for a manifest of another unit or backbone;
    BundleError for one that breaks its schema.
    """
    # A device that only looks for news needs neither, nor what they load.
    from toolchain.bundle.backbone import BackboneManifest
    from toolchain.bundle.manifest import Manifest

    signed = release.manifest
    if len(data) != signed.size or sha256(data) != signed.digest:
        raise WrongReleaseError(
            f"{release.unit}: expected the manifest {signed.digest} of {signed.size} bytes, got "
            f"{sha256(data)} of {len(data)}",
            fix="download it again, from another mirror if there is one",
        )
    kind = Manifest if release.unit.kind == DOMAINS else BackboneManifest
    manifest = kind.from_json(data)
    faults = list(_manifest_faults(release, manifest))
    raise_faults(f"{release.unit}", faults, error=WrongReleaseError, fix=ASK_PUBLISHER)
    return manifest


def _manifest_faults(
    release: SignedRelease, manifest: Manifest | BackboneManifest
) -> Iterator[Fault]:
    own = manifest.name if isinstance(manifest, SealedManifest) else manifest.domain
    if own != release.unit.name:
        yield Fault("name", f"expected {release.unit.name!r}, got the manifest of {own!r}")
    if backbone_of(manifest) != release.backbone:
        yield Fault("backbone", f"expected {release.backbone}, got {backbone_of(manifest)}")


def backbone_of(manifest: Manifest | BackboneManifest) -> BackboneId:
    """Return the backbone that a bundle needs, or that an artefact is."""
    one = manifest if isinstance(manifest, SealedManifest) else manifest.backbone
    return BackboneId.of(one)


def _is_own(unit: Unit, path: str) -> bool:
    name = path.removeprefix(f"{unit}/")
    return path == unit.target(name) and unit.may_have(name)


def _signed_files(unit: Unit, role: Targets) -> Iterator[SignedFile]:
    """Yield the files of a release, the unit's manifest first, then by name."""
    own = unit.target(unit.manifest)
    if role.targets and own not in role.targets:
        raise DelegationError(f"{unit}: expected {own} among its files", fix=ASK_PUBLISHER)
    for path in sorted(role.targets, key=lambda path: (path != own, path)):
        target = role.targets[path]
        digest = target.hashes.get("sha256")
        if not DIGEST.accepts(f"sha256:{digest}"):
            raise MalformedError(
                f"{path}: expected a sha256, got {digest!r:.80}", fix=ASK_PUBLISHER
            )
        size = _whole(unit, "length", target.length)
        if size > LIMIT_BYTES:
            raise TooLargeError(
                f"{path}: expected at most {LIMIT_BYTES} bytes, got {size}", fix=ASK_PUBLISHER
            )
        yield SignedFile(name=path.removeprefix(f"{unit}/"), digest=f"sha256:{digest}", size=size)


def _read_custom(unit: Unit, target: TargetFile) -> _Custom:
    faults: list[Fault] = []
    record = read_section(_Custom, "custom", target.custom, faults)
    raise_faults(f"{unit}", faults, error=MalformedError, fix=ASK_PUBLISHER)
    assert record is not None  # without faults there is a record
    return record


def _whole(unit: Unit, name: str, value: object) -> int:
    """Return a number of metadata; python-tuf lets fractions and true pass."""
    if type(value) is not int or not 0 <= value <= EXACT:
        raise MalformedError(
            f"{unit}: {name}: expected a whole number within 2**53 - 1, got {value!r:.80}",
            fix=ASK_PUBLISHER,
        )
    return value
