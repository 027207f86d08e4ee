"""Reading a release from its role, and the units from targets: what no writer of ours writes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Root, SuccinctRoles, TargetFile, Targets

from tests.support.trusted import CARS, Publisher
from toolchain.bundle import open_bundle
from toolchain.core import errors
from toolchain.core.canonical import LIMIT_BYTES
from toolchain.core.digest import sha256
from toolchain.core.errors import Da3Error
from toolchain.trust import BackboneId, SignedFile, SignedRelease, Unit, check_manifest, checks
from toolchain.trust import keys as keyfiles
from toolchain.trust import metadata as tuf
from toolchain.trust.keyring import Keyring
from toolchain.trust.release import read_release

END = datetime(2027, 6, 1, tzinfo=timezone.utc)
DIGEST = "sha256:" + "ab" * 32
BACKBONE = BackboneId(name="resnet20", weights_digest=DIGEST, graph_digest=DIGEST)
PATH = "domains/cars/bundle.json"


def role(number: int = 3) -> Targets:
    files = [SignedFile(name="bundle.json", digest=DIGEST, size=5)]
    return tuf.make_release(CARS, number, END, files, BACKBONE, 9)


def test_a_release_says_what_was_signed() -> None:
    """Law: reading gives back what was made."""
    assert read_release(CARS, role()) == SignedRelease(
        unit=CARS,
        counter=3,
        expires="2027-06-01T00:00:00Z",
        files=(SignedFile(name="bundle.json", digest=DIGEST, size=5),),
        backbone=BACKBONE,
        bytes=9,
    )


def _large(signed: Targets) -> None:
    signed.targets[PATH].length = LIMIT_BYTES + 1


def _fraction(signed: Targets) -> None:
    signed.targets[PATH].length = 1.5  # type: ignore[assignment]


def _md5(signed: Targets) -> None:
    signed.targets[PATH].hashes = {"md5": "ab" * 16}


def _custom(signed: Targets) -> None:
    signed.targets[PATH].unrecognized_fields = {}


def _counter(signed: Targets) -> None:
    signed.version = True


def _kit_alone(signed: Targets) -> None:
    signed.unrecognized_fields["unit"] = "backbones/r"
    path = "backbones/r/kit-orin.json"
    signed.targets = {path: TargetFile(1, {"sha256": "ab" * 32}, path)}


@pytest.mark.parametrize(
    ("unit", "change", "error"),
    [
        (CARS, _large, errors.TooLargeError),
        (CARS, _fraction, errors.MalformedError),
        (CARS, _md5, errors.MalformedError),
        (CARS, _custom, errors.MalformedError),
        (CARS, _counter, errors.MalformedError),
        (Unit("backbones", "r"), _kit_alone, errors.DelegationError),
    ],
)
def test_a_role_that_no_writer_of_ours_writes(
    unit: Unit, change: Callable[[Targets], None], error: type[Da3Error]
) -> None:
    signed = role()
    change(signed)
    with pytest.raises(error):
        read_release(unit, signed)


def test_a_manifest_of_another_backbone_than_the_signed_one(made: Publisher) -> None:
    data = open_bundle(made.dist / "cars.da3b").manifest.to_json()
    signed = replace(
        read_release(CARS, role()),
        files=(SignedFile(name="bundle.json", digest=sha256(data), size=len(data)),),
    )
    with pytest.raises(errors.WrongReleaseError, match=f"backbone: expected .*{DIGEST}"):
        check_manifest(signed, data)


def test_hash_bins_are_no_units() -> None:
    bins = Delegations({}, succinct_roles=SuccinctRoles([], 1, 8, "bin"))
    with pytest.raises(errors.DelegationError, match="TAP 15"):
        checks.delegated_units(Targets(1, None, END, {}, bins))


def test_more_units_than_a_repository_has() -> None:
    units = [Unit("domains", f"d{number}") for number in range(checks.LIMIT_UNITS + 1)]
    roles = {
        unit.role: DelegatedRole(unit.role, [], 1, terminating=True, paths=[unit.paths])
        for unit in units
    }
    targets = Targets(1, None, END, {}, Delegations({}, roles))
    with pytest.raises(errors.TooLargeError, match="at most 2048 units, got 2049"):
        checks.delegated_units(targets)


def test_a_repository_without_delegations_has_no_units() -> None:
    assert checks.delegated_units(Targets(1, None, END)) == ()


def test_a_root_without_consistent_snapshots() -> None:
    with pytest.raises(errors.DelegationError, match="consistent snapshots"):
        checks.require_root(Root(1, None, END, consistent_snapshot=False))


def test_metadata_that_grew_too_large_is_not_signed() -> None:
    """Whoever signs hears of a limit, and not only the devices."""
    units = {
        Unit("domains", f"{number:064d}"): [
            SSlibKey(f"{number:064x}", "ed25519", "ed25519", {"public": "ab" * 32})
        ]
        for number in range(2400)
    }
    targets = tuf.make_targets(1, END, tuf.Delegated(units=units, fleet=[]))
    with pytest.raises(errors.TooLargeError, match="a second repository"):
        tuf.sign(targets, [])


def test_a_keyring_whose_targets_are_missing(publisher: Publisher) -> None:
    (publisher.keys / "metadata" / "1.targets.json").unlink()
    with pytest.raises(errors.DataError, match="the whole folder metadata"):
        Keyring(publisher.keys)


def test_a_list_of_issued_numbers_that_was_edited(publisher: Publisher) -> None:
    folder = publisher.keys / "domains" / "cars"
    issued = keyfiles.read_issued(folder)
    twice = replace(issued, releases=issued.releases * 2)
    (folder / "issued.json").write_bytes(twice.to_json())
    with pytest.raises(errors.BundleError, match="expected rising counters"):
        publisher.sign(publisher.bundle(), CARS)


def test_without_cryptography_the_extra_is_named(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = [name for name in sys.modules if name.partition(".")[0] == "cryptography"]
    for name in [*gone, "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(errors.MissingPackageError, match=r"signing needs(.|\n)*\[sign\]"):
        publisher.sign(publisher.bundle(), CARS)
    with pytest.raises(errors.MissingPackageError, match="making keys needs"):
        Publisher(tmp_path).init("cars")
