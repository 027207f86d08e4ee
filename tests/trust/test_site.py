"""Publishing: what is refused, and that a reader of half a publish sees a whole state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.trusted import CARS, NOW, RESNET, Device, Publisher, copied, passphrase
from toolchain.core import errors
from toolchain.core.files import write_atomic
from toolchain.trust import Unit, ceremonies, site
from toolchain.trust.content import Content, find_content


def test_a_release_is_published_once(publisher: Publisher) -> None:
    path = publisher.sign(publisher.bundle(version="2.0"), CARS)
    assert [one.counter for one in publisher.publish(path).releases] == [2]
    done = publisher.publish(path)
    assert done.releases == ()
    assert done.same == ("domains/cars",)


def test_two_releases_of_one_unit_at_once_are_refused(publisher: Publisher) -> None:
    path = publisher.sign(publisher.bundle(version="2.0"), CARS)
    with pytest.raises(errors.UsageError, match="two releases of domains/cars"):
        publisher.publish(path, publisher.dist / "cars.da3b")


def test_what_a_person_has_to_sign_soon_is_said(publisher: Publisher) -> None:
    assert publisher.publish().soon == ()
    publisher.publish(publisher.sign(publisher.bundle(version="2.0"), CARS, days=29))
    assert publisher.publish().soon == ("domains/cars: 2026-06-30",)
    publisher.later(days=340)
    assert [one.partition(":")[0] for one in publisher.publish().soon] == [
        "targets",
        "backbones/resnet20",
        "domains/cars",
        "domains/flowers",
    ]


def test_a_backbone_that_changed_on_its_way_is_not_published(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is other bytes by the time that it is copied: nothing of it gets a name."""
    blobs = publisher.site / "blobs"
    blobs.rename(publisher.home / "blobs")
    path = publisher.sign(publisher.backbone(), RESNET)

    def changed(*words: Any) -> Content:
        content = find_content(*words)
        (publisher.backbone() / "weights.safetensors").write_bytes(b"other weights")
        return content

    monkeypatch.setattr(site, "find_content", changed)
    with pytest.raises(errors.BundleError, match="export the backbone again"):
        publisher.publish(path)
    assert not [name for name in blobs.rglob("*") if name.name.startswith(".")]


def test_a_bundle_stands_for_the_release_beside_it(publisher: Publisher) -> None:
    publisher.sign(publisher.bundle(version="2.0"), CARS)
    done = publisher.publish(publisher.dist / "cars.da3b")
    assert [one.counter for one in done.releases] == [2]


def test_a_counter_that_does_not_rise_is_refused(publisher: Publisher) -> None:
    old = (publisher.dist / "cars.release.json").read_bytes()
    publisher.release(version="2.0")
    (publisher.dist / "cars.release.json").write_bytes(old)
    with pytest.raises(errors.RollbackError, match="above 2, which is published, got 1"):
        publisher.publish(publisher.dist / "cars.release.json")


def test_the_same_counter_for_other_content_is_refused(publisher: Publisher) -> None:
    """The list of issued numbers was lost, and a number came out twice."""
    (publisher.keys / "domains" / "cars" / "issued.json").unlink()
    path = publisher.sign(publisher.bundle(version="2.0"), CARS)
    with pytest.raises(errors.RollbackError, match="above 1"):
        publisher.publish(path)


def test_content_that_is_not_there_or_another_is_refused(publisher: Publisher) -> None:
    path = publisher.sign(publisher.bundle(version="2.0"), CARS)
    publisher.bundle(version="3.0")
    with pytest.raises(errors.DataError, match="got another release"):
        publisher.publish(path)
    (publisher.dist / "cars.da3b").unlink()
    with pytest.raises(errors.DataError, match="got nothing"):
        publisher.publish(path)


def test_a_bundle_that_nobody_has_signed(publisher: Publisher) -> None:
    path = publisher.bundle("digits")
    with pytest.raises(errors.DataError, match=r"signed release at .*digits\.release\.json"):
        publisher.publish(path)


def test_a_release_that_has_expired_is_refused(publisher: Publisher) -> None:
    path = publisher.sign(publisher.bundle(version="2.0"), CARS, days=1)
    publisher.later(days=2)
    with pytest.raises(errors.ExpiredError, match="sign it again"):
        publisher.publish(path)


def test_what_is_no_release_is_refused(publisher: Publisher) -> None:
    path = publisher.dist / "x.release.json"
    for data in (
        b"",
        b"{}",
        b"[" * 5000,
        (publisher.keys / "metadata/1.targets.json").read_bytes(),
    ):
        path.write_bytes(data)
        with pytest.raises(errors.MalformedError):
            publisher.publish(path)


def test_a_missing_backbone_is_said(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    publisher.init("cars")
    path = publisher.sign(publisher.bundle(), CARS)
    assert publisher.publish(path).missing == ("resnet20",)


def test_another_keyring_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    other = Publisher(tmp_path / "other")
    other.home.mkdir()
    other.init("cars")
    with pytest.raises(errors.UsageError, match="got another one"):
        site.publish(publisher.site, other.keys, (), passphrase=passphrase, now=NOW)


def test_a_keyring_that_missed_a_ceremony_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    old = copied(publisher, tmp_path / "old")
    publisher.ceremony(ceremonies.rotate, "root")
    publisher.publish()
    with pytest.raises(errors.RollbackError, match="the last ceremony"):
        site.publish(publisher.site, old.keys, (), passphrase=passphrase, now=NOW)


def test_a_site_without_news_lasts_longer(publisher: Publisher, device: Device) -> None:
    """The snapshot is signed anew when half of its time is over, and not before."""
    publisher.later(days=5)
    first = publisher.publish()
    assert (first.snapshot, first.timestamp) == (1, 2)
    device.look(publisher.now)
    publisher.later(days=20)
    assert publisher.publish().snapshot == 2
    assert device.look(publisher.now).releases


def test_a_reader_of_half_a_publish_sees_the_old_site_whole(
    publisher: Publisher, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publish is cut off at each file that it writes in turn; then it is left to end."""
    digits = Unit("domains", "digits")
    publisher.ceremony(ceremonies.add, digits)
    paths = [
        publisher.sign(publisher.bundle(version="2.0"), CARS),
        publisher.sign(publisher.bundle("digits"), digits),
    ]
    left = 0

    def cut_off(path: Path, data: bytes, **options: bool) -> None:
        nonlocal left
        if left == 0:
            raise OSError("cut off")
        left -= 1
        write_atomic(path, data, **options)

    monkeypatch.setattr(site, "write_atomic", cut_off)
    for cut in range(7):
        left = cut
        with pytest.raises(OSError, match="cut off"):
            publisher.publish(*paths)
        seen = device.look(NOW)
        assert seen.releases["domains/cars"].counter == 1
        assert "domains/digits" not in seen.releases
    left = 7
    publisher.publish(*paths)
    after = device.look(NOW)
    assert after.releases["domains/cars"].counter == 2
    assert after.releases["domains/digits"].counter == 1
