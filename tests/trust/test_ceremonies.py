"""Every ceremony that docs/trust.md describes, each up to a device that follows it."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from tests.support.trusted import CARS, FLOWERS, NOW, Device, Publisher, passphrase
from toolchain.core import errors
from toolchain.trust import Unit, ceremonies, keyring
from toolchain.trust import keys as keyfiles
from toolchain.trust.keyring import KeyringFacts

ROLES = ("targets", "snapshot", "timestamp", "fleet")


def ids(facts: KeyringFacts, role: str) -> set[str]:
    (found,) = (one for one in facts.roles if one.role == role)
    return {key.keyid for key in found.keys}


def test_the_first_ceremony_makes_every_key_private_and_encrypted(made: Publisher) -> None:
    facts = keyring.show(made.keys)
    assert {one.role: (one.threshold, len(one.keys)) for one in facts.roles} == {
        "root": (2, 3),
        **dict.fromkeys((*ROLES, "domains/cars", "domains/flowers", "backbones/resnet20"), (1, 1)),
    }
    pems = list(made.keys.rglob("*.pem"))
    assert len(pems) == 10
    for pem in pems:
        assert stat.S_IMODE(pem.stat().st_mode) == 0o600
        assert pem.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert stat.S_IMODE(made.keys.stat().st_mode) == 0o700


def test_show_tells_when_each_role_expires(made: Publisher) -> None:
    expires = {one.role: one.expires for one in keyring.show(made.keys).roles}
    assert expires["root"] == "2028-05-31T12:00:00Z"
    assert expires["targets"] == "2027-06-01T12:00:00Z"
    assert expires["domains/cars"] == "2027-06-01T12:00:00Z"
    assert expires["timestamp"] == ""


def test_a_first_ceremony_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(errors.SigningError, match="at least 12 characters, got 5"):
        ceremonies.init(tmp_path / "keys", passphrase=lambda _: "short", now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_keys_is_never_replaced(publisher: Publisher) -> None:
    before = keyring.show(publisher.keys)
    with pytest.raises(errors.ExistsError, match="da3 keys rotate"):
        publisher.ceremony(ceremonies.init)
    assert keyring.show(publisher.keys) == before


@pytest.mark.parametrize("role", ["root", *ROLES, "backbones/resnet20", "domains/cars"])
def test_rotation_of_each_role(publisher: Publisher, device: Device, role: str) -> None:
    """New keys, no old one left, and a device that knew the old ones follows."""
    device.look(NOW)
    before = ids(keyring.show(publisher.keys), role)
    publisher.ceremony(ceremonies.rotate, role)
    after = ids(keyring.show(publisher.keys), role)
    assert len(after) == len(before)
    assert not after & before
    assert {one.keyid for one in keyfiles.records(publisher.keys / role)} == after
    again = {
        "domains/cars": lambda: publisher.sign(publisher.bundle(), CARS),
        "backbones/resnet20": lambda: publisher.sign(
            publisher.backbone(), Unit("backbones", "resnet20")
        ),
    }
    if role in again:
        with pytest.raises(errors.UnsignedError, match="its key was rotated"):
            publisher.publish()
    publisher.publish(*([again[role]()] if role in again else []))
    trusted = device.look(NOW)
    assert len(trusted.releases) == 3
    assert trusted.refused == {}
    if role == "fleet":
        assert set(trusted.fleet) == after


def test_a_lost_key_of_root_is_replaced_by_the_other_two(
    publisher: Publisher, device: Device
) -> None:
    records = keyfiles.records(publisher.keys / "root")
    keyfiles.remove(publisher.keys / "root", records[0])
    publisher.ceremony(ceremonies.rotate, f"root/{records[0].keyid[:12]}")
    after = ids(keyring.show(publisher.keys), "root")
    assert records[0].keyid not in after
    assert {records[1].keyid, records[2].keyid} < after
    publisher.publish()
    assert len(device.look(NOW).releases) == 3


def test_two_lost_keys_of_root_are_too_many(publisher: Publisher) -> None:
    for record in keyfiles.records(publisher.keys / "root")[:2]:
        keyfiles.remove(publisher.keys / "root", record)
    with pytest.raises(errors.SigningError, match="expected 2 of the 3 keys of root"):
        publisher.ceremony(ceremonies.rotate, "root")


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp", "fleet", "domains/cars"])
def test_a_lost_key_of_each_other_role_is_rotated(
    publisher: Publisher, device: Device, role: str
) -> None:
    shutil.rmtree(publisher.keys / role)
    publisher.ceremony(ceremonies.rotate, role)
    counter = {"counter": 2} if role == "domains/cars" else {}
    publisher.publish(publisher.sign(publisher.bundle(version="2.0"), CARS, **counter))
    assert device.look(NOW).releases["domains/cars"].counter == 2


def test_revocation_of_a_domain(publisher: Publisher, device: Device) -> None:
    device.look(NOW)
    publisher.ceremony(ceremonies.revoke, CARS)
    assert not list((publisher.keys / "domains" / "cars").glob("*.pem"))
    publisher.publish()
    assert "domains/cars" not in device.look(NOW).releases
    with pytest.raises(errors.UnsignedError):
        publisher.publish(publisher.dist / "cars.release.json")


def test_a_revoked_domain_comes_back_with_a_new_key(publisher: Publisher, device: Device) -> None:
    publisher.ceremony(ceremonies.revoke, CARS)
    publisher.publish()
    device.look(NOW)
    publisher.ceremony(ceremonies.add, CARS)
    publisher.publish(publisher.sign(publisher.bundle(), CARS))
    assert device.look(NOW).releases["domains/cars"].counter == 2


def test_adding_a_domain(publisher: Publisher, device: Device) -> None:
    device.look(NOW)
    publisher.ceremony(ceremonies.add, Unit("domains", "digits"))
    publisher.release("digits")
    assert device.look(NOW).releases["domains/digits"].counter == 1
    with pytest.raises(errors.UsageError, match="without a key"):
        publisher.ceremony(ceremonies.add, Unit("domains", "digits"))


def test_expiry_of_root_and_targets_is_put_off(publisher: Publisher, device: Device) -> None:
    """Two years later nothing is valid; renew, sign and publish make it so again."""
    publisher.later(days=3 * 365)
    with pytest.raises(errors.ExpiredError, match="da3 keys renew"):
        publisher.publish()
    publisher.ceremony(ceremonies.renew)
    publisher.publish(publisher.sign(publisher.bundle(), CARS))
    trusted = device.look(publisher.now)
    assert set(trusted.releases) == {"domains/cars"}
    assert isinstance(trusted.refused["domains/flowers"], errors.ExpiredError)


def test_moving_a_repository(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    """The files are copied; devices take the new address, and the old cache still serves."""
    device.look(NOW)
    shutil.move(publisher.site, tmp_path / "elsewhere")
    with pytest.raises(errors.RepositoryError, match="cannot reach"):
        device.look(NOW)
    device.site = tmp_path / "elsewhere"
    assert len(device.look(NOW).releases) == 3


def test_keys_are_kept_apart_and_each_ceremony_asks_for_its_own(
    publisher: Publisher, tmp_path: Path
) -> None:
    """The publishing machine has the online keys alone; it publishes, and rotates nothing."""
    online = tmp_path / "online"
    for name in ("snapshot", "timestamp", "metadata"):
        shutil.copytree(publisher.keys / name, online / name)
    facts = {one.role: one.keys[0].where for one in keyring.show(online).roles}
    assert facts["timestamp"] == "file"
    assert facts["targets"] == facts["domains/cars"] == "elsewhere"
    with pytest.raises(errors.SigningError, match="keys of root"):
        ceremonies.rotate(online, "timestamp", passphrase=passphrase, now=NOW)
    with pytest.raises(errors.SigningError, match="keys of targets"):
        ceremonies.revoke(online, CARS, passphrase=passphrase, now=NOW)


def test_an_unknown_role_is_named_with_its_nearest(publisher: Publisher) -> None:
    with pytest.raises(errors.UnknownNameError, match="did you mean domains/cars"):
        publisher.ceremony(ceremonies.rotate, "domains/car")
    with pytest.raises(errors.UnknownNameError, match="unknown key of root"):
        publisher.ceremony(ceremonies.rotate, "root/0000")
    with pytest.raises(errors.UnknownNameError, match="unknown unit"):
        publisher.ceremony(ceremonies.revoke, Unit("domains", "cats"))


def test_a_rotation_cut_off_before_the_metadata_changes_nothing(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new key lies beside the old one, which still counts; the next ceremony removes it."""
    before = ids(keyring.show(publisher.keys), "domains/cars")
    with monkeypatch.context() as cut:
        cut.setattr(ceremonies, "_write", _no_room)
        with pytest.raises(OSError, match="cut off"):
            publisher.ceremony(ceremonies.rotate, "domains/cars")
    assert len(keyfiles.records(publisher.keys / "domains" / "cars")) == 2
    assert ids(keyring.show(publisher.keys), "domains/cars") == before
    publisher.ceremony(ceremonies.rotate, "timestamp")
    assert {one.keyid for one in keyfiles.records(publisher.keys / "domains" / "cars")} == before


@pytest.mark.parametrize("role", ["targets", "timestamp", "fleet", "domains/cars", "root"])
def test_a_wrong_passphrase_leaves_no_key(publisher: Publisher, role: str) -> None:
    before = sorted(publisher.keys.rglob("*"))
    with pytest.raises(errors.SigningError, match="passphrase"):
        ceremonies.rotate(publisher.keys, role, passphrase=lambda _: "quite another one", now=NOW)
    assert sorted(publisher.keys.rglob("*")) == before


def _no_room(*_: object) -> None:
    raise OSError("cut off")


def test_two_at_once_are_refused(publisher: Publisher) -> None:
    from toolchain.core.lock import locked

    with locked(publisher.keys / "lock", what="another"), pytest.raises(errors.LockedError):
        publisher.ceremony(ceremonies.rotate, "timestamp")


def test_no_folder_of_keys(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match="da3 keys init"):
        keyring.show(tmp_path / "nothing")


def test_the_flowers_do_not_notice(publisher: Publisher, device: Device) -> None:
    """Law: a ceremony of one unit changes nothing for another."""
    before = device.look(NOW).release(FLOWERS)
    publisher.ceremony(ceremonies.rotate, "domains/cars")
    publisher.publish(publisher.sign(publisher.bundle(), CARS))
    assert device.look(NOW).release(FLOWERS) == before
