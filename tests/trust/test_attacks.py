"""The attacks of the TUF specification (1.0.34, section 1.5.2), and those beside it.

Each is one test with an error of its own; in each the device keeps what it had. A thief's work is
done with the real keys of the publisher's folder, as far as the attack grants them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from tuf.api.exceptions import SlowRetrievalError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from tests.support.trusted import CARS, FLOWERS, NOW, RESNET, Device, Publisher
from toolchain.core import errors
from toolchain.trust import Floors, ceremonies, check_manifest
from toolchain.trust import metadata as tuf
from toolchain.trust.checks import NO_FLOORS

DAY = timedelta(days=1)


def loaded(publisher: Publisher, name: str) -> Metadata[Targets]:
    found: Metadata[Targets] = Metadata.from_bytes(publisher.metadata(name).read_bytes())
    return found


# -- the ten ---------------------------------------------------------------------------------------


def test_arbitrary_software(publisher: Publisher, device: Device) -> None:
    """A mirror and both online keys are the attacker's; the key of the domain is not."""
    role = loaded(publisher, "1.domain-cars.json").signed
    role.version = 2
    role.targets["domains/cars/bundle.json"].hashes["sha256"] = "66" * 32
    publisher.republish(domain_cars=publisher.forged(role, "domains/flowers"))
    with pytest.raises(errors.UnsignedError, match="domain-cars was signed by 0/1 keys"):
        device.look(NOW, units=[CARS])


def test_rollback(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    """The repository of yesterday is served again."""
    shutil.copytree(publisher.site, tmp_path / "yesterday")
    publisher.release(version="2.0")
    device.look(NOW)
    device.site = tmp_path / "yesterday"
    with pytest.raises(errors.RollbackError, match="older than before"):
        device.look(NOW)


def test_rollback_of_one_release_with_the_online_keys(publisher: Publisher, device: Device) -> None:
    """A new snapshot that lists an old release: the floor of the unit is in the way."""
    old = publisher.metadata("1.domain-cars.json").read_bytes()
    publisher.release(version="2.0")
    device.commit(device.look(NOW))
    shutil.rmtree(device.folder)
    device.floors = Floors(metadata={}, releases=device.floors.releases, clock=device.floors.clock)
    publisher.republish(domain_cars=old)
    with pytest.raises(errors.RollbackError, match=r"expected release 2 or newer.* got 1"):
        device.look(NOW, units=[CARS])


def test_indefinite_freeze(publisher: Publisher, device: Device) -> None:
    """A mirror that stands still: its timestamp ends after a week."""
    device.look(NOW)
    with pytest.raises(errors.ExpiredError, match=r"timestamp: .*ended 2026-06-08") as caught:
        device.look(NOW + 8 * DAY)
    assert not isinstance(caught.value, errors.ClockError)


def test_indefinite_freeze_with_the_clock_of_the_device_turned_back(
    publisher: Publisher, device: Device
) -> None:
    """Whoever holds the clock back does not get behind what was published before."""
    shutil.copytree(publisher.site, publisher.home / "frozen")
    publisher.later(days=10)
    publisher.publish()
    device.look(NOW + 10 * DAY)
    shutil.rmtree(device.folder)
    device.floors = replace(device.floors, metadata={})
    device.site = publisher.home / "frozen"
    with pytest.raises(errors.ExpiredError, match="timestamp"):
        device.look(NOW)


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json"])
def test_endless_data(publisher: Publisher, device: Device, name: str) -> None:
    sent = 0

    def endless(asked: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal sent
        if asked != name:
            yield from pieces
            return
        while True:
            sent += 1 << 14
            yield b"{" * (1 << 14)

    device.fetcher.spoil = endless
    with pytest.raises(errors.TooLargeError, match="too large"):
        device.look(NOW)
    assert sent <= tuf.LIMIT_BYTES + (1 << 14)


def test_endless_data_promised_by_a_stolen_timestamp_key(
    publisher: Publisher, device: Device
) -> None:
    """The timestamp says how long the snapshot is; our limit holds all the same."""
    old = tuf.read(Timestamp, publisher.metadata("timestamp.json").read_bytes(), "").signed
    old.version += 1
    old.snapshot_meta.length = 1 << 40
    old.snapshot_meta.hashes = None
    publisher.forge("timestamp.json", old, "timestamp")
    sent = 0

    def endless(asked: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal sent
        while "snapshot" in asked:
            sent += 1 << 16
            yield bytes(1 << 16)
        yield from pieces

    device.fetcher.spoil = endless
    with pytest.raises(errors.TooLargeError):
        device.look(NOW)
    assert sent <= tuf.LIMIT_BYTES + (1 << 16)


def test_extraneous_dependencies(publisher: Publisher, device: Device) -> None:
    """The key of a domain lists a further file, which would be installed beside the release."""
    role = loaded(publisher, "1.domain-cars.json").signed
    role.version = 2
    path = "domains/cars/helper.so"
    role.targets[path] = TargetFile(1, {"sha256": "66" * 32}, path)
    publisher.republish(domain_cars=publisher.forged(role, "domains/cars"))
    with pytest.raises(errors.DelegationError, match=r"got 'domains/cars/helper\.so'"):
        device.look(NOW, units=[CARS])


def test_a_path_that_leaves_the_unit(publisher: Publisher, device: Device) -> None:
    """The key of one domain signs the bundle of another."""
    role = loaded(publisher, "1.domain-cars.json").signed
    role.version = 2
    stolen = role.targets.pop("domains/cars/bundle.json")
    role.targets["domains/flowers/bundle.json"] = stolen
    publisher.republish(domain_cars=publisher.forged(role, "domains/cars"))
    trusted = device.look(NOW)
    assert set(trusted.releases) == {"domains/flowers", "backbones/resnet20"}
    assert trusted.releases["domains/flowers"].counter == 1
    with pytest.raises(errors.DelegationError, match=r"domains/flowers/bundle\.json"):
        trusted.release(CARS)


def test_mix_and_match(publisher: Publisher, device: Device) -> None:
    """A mirror serves the role of one state with the snapshot of another."""
    old = publisher.metadata("1.domain-cars.json").read_bytes()
    publisher.release(version="2.0")
    publisher.metadata("2.domain-cars.json").write_bytes(old)
    with pytest.raises(errors.MixedError, match="not what the snapshot says"):
        device.look(NOW, units=[CARS])


def test_mix_and_match_of_snapshots(publisher: Publisher, device: Device) -> None:
    old = publisher.metadata("1.snapshot.json").read_bytes()
    publisher.release(version="2.0")
    publisher.metadata("2.snapshot.json").write_bytes(old)
    with pytest.raises(errors.MixedError):
        device.look(NOW)


def test_wrong_software(publisher: Publisher, device: Device) -> None:
    """The role of one domain, rightly signed, is served as that of another."""
    flowers = publisher.metadata("1.domain-flowers.json").read_bytes()
    publisher.republish(domain_cars=flowers)
    with pytest.raises(errors.UnsignedError):
        device.look(NOW, units=[CARS])


def test_wrong_software_of_one_key_for_two_units(publisher: Publisher, device: Device) -> None:
    """Where one key serves two domains, the metadata itself says whose it is."""
    role = loaded(publisher, "1.domain-cars.json").signed
    role.version, role.targets = 2, {}
    role.unrecognized_fields["unit"] = "domains/flowers"
    publisher.republish(domain_cars=publisher.forged(role, "domains/cars"))
    with pytest.raises(errors.DelegationError, match="expected a release of domains/cars"):
        device.look(NOW, units=[CARS])


def test_wrong_software_under_the_right_name(publisher: Publisher, device: Device) -> None:
    """A mirror sends another manifest than the signed one."""
    trusted = device.look(NOW)
    other = next(publisher.site.glob("targets/domains/flowers/*")).read_bytes()
    cars = trusted.releases["domains/cars"]
    with pytest.raises(errors.WrongReleaseError, match="expected the manifest sha256:"):
        check_manifest(cars, other)
    flowers = trusted.releases["domains/flowers"]
    with pytest.raises(errors.WrongReleaseError, match="got the manifest of 'flowers'"):
        check_manifest(replace(cars, files=flowers.files), other)


def test_malicious_mirror(publisher: Publisher, device: Device) -> None:
    """A mirror without any key changes one bit of each file in turn; nothing is taken."""
    device.look(NOW)
    publisher.release(version="2.0")
    before = device.floors
    for name in ("timestamp.json", "2.snapshot.json", "2.domain-cars.json"):
        path = publisher.metadata(name)
        good = path.read_bytes()
        middle = good.index(b'"signed"') + 40
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
        with pytest.raises(errors.TrustError):
            device.look(NOW, units=[CARS])
        path.write_bytes(good)
    assert device.floors.releases == before.releases
    assert device.look(NOW).releases["domains/cars"].counter == 2


def test_malicious_mirror_that_has_lost_a_role(publisher: Publisher, device: Device) -> None:
    """A snapshot that was signed anew without a unit, by a thief of the online keys."""
    device.look(NOW)
    stamp = tuf.read(Timestamp, publisher.metadata("timestamp.json").read_bytes(), "").signed
    name = f"{stamp.snapshot_meta.version}.snapshot.json"
    snapshot = tuf.read(Snapshot, publisher.metadata(name).read_bytes(), "").signed
    snapshot.version += 1
    del snapshot.meta["domain-cars.json"]
    publisher.restamp(snapshot)
    with pytest.raises(errors.RollbackError, match="lost a role"):
        device.look(NOW)


def test_slow_retrieval(device: Device) -> None:
    """A fetcher with a limit gives up; the repository, not the metadata, is at fault."""

    def slow(asked: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield next(pieces)[:1]
        raise SlowRetrievalError(f"{asked}: 1 byte in 30 s")

    device.fetcher.spoil = slow
    with pytest.raises(errors.SlowRepositoryError, match="1 byte in 30 s"):
        device.look(NOW)


def test_key_compromise_below_the_threshold(publisher: Publisher, device: Device) -> None:
    """One of three keys of root is stolen; a root needs two."""
    root = tuf.read(Root, device.root, "root").signed
    root.version = 2
    path = publisher.forge("2.root.json", root, "root")
    document = json.loads(path.read_bytes())
    document["signatures"] = document["signatures"][:1]
    path.write_text(json.dumps(document))
    with pytest.raises(errors.UnsignedError, match="root was signed by 1/2 keys"):
        device.look(NOW)


# -- beside the ten --------------------------------------------------------------------------------


@pytest.mark.parametrize("emptied", [("timestamp.json", "snapshot.json"), ("targets.json",)])
def test_cache_loss(
    publisher: Publisher, device: Device, tmp_path: Path, emptied: tuple[str, ...]
) -> None:
    """Emptied files, as after a power cut, let python-tuf take an old repository; we do not."""
    shutil.copytree(publisher.site, tmp_path / "yesterday")
    publisher.release(version="2.0")
    device.look(NOW)
    for name in emptied:
        (device.folder / name).write_bytes(b"")
    device.site = tmp_path / "yesterday"
    with pytest.raises(errors.RollbackError):
        device.look(NOW)
    shutil.rmtree(device.folder)
    with pytest.raises(errors.RollbackError, match="which this device has seen"):
        device.look(NOW)


def test_revoked_key(publisher: Publisher, device: Device) -> None:
    device.commit(device.look(NOW))
    publisher.ceremony(ceremonies.revoke, CARS)
    publisher.publish()
    trusted = device.look(NOW)
    assert set(trusted.releases) == {"domains/flowers", "backbones/resnet20"}
    with pytest.raises(errors.RevokedError, match="domains/cars"):
        device.look(NOW, units=[CARS])


def test_a_release_of_a_key_that_was_rotated_away(publisher: Publisher, device: Device) -> None:
    """The thief of an old domain key signs a higher release; online keys are the thief's too."""
    shutil.copytree(publisher.keys / "domains" / "cars", publisher.keys / "stolen")
    publisher.ceremony(ceremonies.rotate, "domains/cars")
    publisher.release(version="2.0")
    device.look(NOW)
    role = loaded(publisher, "2.domain-cars.json").signed
    role.version = 3
    publisher.republish(domain_cars=publisher.forged(role, "stolen"))
    with pytest.raises(errors.UnsignedError):
        device.look(NOW, units=[CARS])


def test_root_rotated_three_times_while_the_device_slept(
    publisher: Publisher, device: Device
) -> None:
    device.look(NOW)
    for _ in range(3):
        publisher.ceremony(ceremonies.rotate, "root")
    publisher.publish()
    trusted = device.look(NOW)
    assert trusted.floors.metadata["root"] == 4
    assert len(trusted.releases) == 3


def test_a_mirror_that_holds_back_the_newest_root(publisher: Publisher, device: Device) -> None:
    """The keys of the old root were rotated away for a reason."""
    publisher.ceremony(ceremonies.rotate, "root")
    publisher.publish()
    device.look(NOW)
    shutil.rmtree(device.folder)
    publisher.metadata("2.root.json").unlink()
    with pytest.raises(errors.RollbackError, match="root: expected version 2 or newer"):
        device.look(NOW)


def test_a_delegation_cycle(publisher: Publisher, device: Device) -> None:
    """cars delegates to flowers, and flowers to cars: neither may delegate at all."""
    top = loaded(publisher, "1.targets.json").signed
    roles = {}
    for own in ("cars", "flowers"):
        role = loaded(publisher, f"1.domain-{own}.json").signed
        # Without a target of its own, who looks for one has to follow the delegations.
        role.version, role.delegations, role.targets = 2, top.delegations, {}
        data = publisher.forged(role, f"domains/{own}")
        roles[f"domain_{own}"] = data
    publisher.republish(**roles)
    with pytest.raises(errors.DelegationError, match="delegates further"):
        device.look(NOW, units=[CARS, FLOWERS])
    assert len([name for name in device.fetcher.asked if "domain-" in name]) == 2


def test_a_repository_of_100000_targets(publisher: Publisher, device: Device) -> None:
    """The key of a domain lists them all, which is more than a role may hold."""
    role = loaded(publisher, "1.domain-cars.json").signed
    role.version = 2
    about = TargetFile(1, {"sha256": "66" * 32}, "x")
    role.targets |= {f"domains/cars/{number}": about for number in range(100_000)}
    data = json.dumps({"signatures": [], "signed": role.to_dict()}).encode()
    publisher.republish(domain_cars=data)
    with pytest.raises(errors.TooLargeError, match="too large"):
        device.look(NOW, units=[CARS])


def test_a_role_of_more_files_than_a_release_has(publisher: Publisher, device: Device) -> None:
    role = loaded(publisher, "1.domain-cars.json").signed
    role.version = 2
    about = TargetFile(1, {"sha256": "66" * 32}, "x")
    role.targets |= {f"domains/cars/{number}": about for number in range(100)}
    publisher.republish(domain_cars=publisher.forged(role, "domains/cars"))
    with pytest.raises(errors.TooLargeError, match="at most 64 files, got 101"):
        device.look(NOW, units=[CARS])


def test_the_clock_at_1970(device: Device) -> None:
    """No error: the time of the publish is taken, and what could not be checked is said."""
    trusted = device.look(datetime(1970, 1, 1, tzinfo=timezone.utc))
    assert trusted.unchecked
    assert trusted.floors.clock == "2026-06-01T12:00:00Z"


def test_the_clock_at_2040(device: Device) -> None:
    """The error names the clock, and no floor rises by it."""
    device.look(NOW)
    before = device.floors
    with pytest.raises(errors.ClockError, match="the clock of this device shows 2040-01-01"):
        device.look(datetime(2040, 1, 1, tzinfo=timezone.utc))
    assert device.floors == before
    assert device.look(NOW).releases


def test_a_floor_of_the_clock_in_2040_does_not_come_from_the_clock(device: Device) -> None:
    """Law: the floor is what the repository says, never what the device's clock shows."""
    device.look(NOW + timedelta(days=6))
    assert device.floors.clock == "2026-06-01T12:00:00Z"


def test_fast_forward_of_the_online_keys(publisher: Publisher, device: Device) -> None:
    """A thief signs the highest versions; new keys begin anew, and devices follow."""
    stamp = tuf.read(Timestamp, publisher.metadata("timestamp.json").read_bytes(), "").signed
    good = publisher.metadata("timestamp.json").read_bytes()
    stamp.version = 2**53 - 1
    publisher.forge("timestamp.json", stamp, "timestamp")
    device.look(NOW)
    publisher.metadata("timestamp.json").write_bytes(good)
    with pytest.raises(errors.RollbackError):
        device.look(NOW)
    publisher.ceremony(ceremonies.rotate, "timestamp")
    publisher.publish()
    assert device.look(NOW).releases


@pytest.mark.parametrize(
    "name", ["domain-", "domain-a/b", "backbone-", "other", "domain-.hidden", "domain-x" * 40]
)
def test_a_role_of_no_unit(publisher: Publisher, device: Device, name: str) -> None:
    top = loaded(publisher, "1.targets.json").signed
    assert top.delegations is not None
    assert top.delegations.roles is not None
    role = top.delegations.roles.pop("domain-flowers")
    role.name = name
    top.delegations.roles[name] = role
    top.version = 2
    publisher.republish(targets=publisher.forged(top, "targets"))
    with pytest.raises(errors.DelegationError, match="targets"):
        device.look(NOW)


@pytest.mark.parametrize("paths", [["*"], ["domains/*/*"], ["domains/cars/*", "x/*"], []])
def test_a_delegation_of_more_than_the_units_paths(
    publisher: Publisher, device: Device, paths: list[str]
) -> None:
    top = loaded(publisher, "1.targets.json").signed
    assert top.delegations is not None
    assert top.delegations.roles is not None
    top.delegations.roles["domain-cars"].paths = paths
    top.version = 2
    publisher.republish(targets=publisher.forged(top, "targets"))
    with pytest.raises(errors.DelegationError, match="expected the paths domains/cars/"):
        device.look(NOW)


def test_targets_of_the_top_level_role(publisher: Publisher, device: Device) -> None:
    """The key of targets may say whose key counts; it may not sign a release."""
    top = loaded(publisher, "1.targets.json").signed
    path = "domains/cars/bundle.json"
    top.targets[path] = TargetFile(1, {"sha256": "66" * 32}, path)
    top.version = 2
    publisher.republish(targets=publisher.forged(top, "targets"))
    with pytest.raises(errors.DelegationError, match="delegates only"):
        device.look(NOW)


def test_one_key_of_root_under_two_names(publisher: Publisher, device: Device) -> None:
    """A threshold of two is two keys, not one key twice."""
    root = tuf.read(Root, device.root, "root").signed
    first, second = root.roles["root"].keyids[:2]
    root.keys[second].keyval = root.keys[first].keyval
    root.version = 2
    publisher.forge("2.root.json", root, "root")
    document = json.loads(publisher.metadata("2.root.json").read_bytes())
    signature = next(one["sig"] for one in document["signatures"] if one["keyid"] == first)
    for one in document["signatures"]:
        if one["keyid"] == second:
            one["sig"] = signature
    # Old root has still three keys: the third signs as itself, so two of the old ones have signed.
    publisher.metadata("2.root.json").write_text(json.dumps(document))
    with pytest.raises(errors.DelegationError, match="got one of them twice"):
        device.look(NOW)


def test_no_floors_are_the_lowest() -> None:
    assert Floors(metadata={}, releases={}, clock="1970-01-01T00:00:00Z") == NO_FLOORS


def test_one_bad_unit_does_not_keep_the_others(publisher: Publisher, device: Device) -> None:
    publisher.metadata("1.domain-cars.json").write_bytes(b"{}")
    trusted = device.look(NOW)
    assert set(trusted.refused) == {"domains/cars"}
    assert trusted.release(FLOWERS) is not None
    assert trusted.release(RESNET) is not None
