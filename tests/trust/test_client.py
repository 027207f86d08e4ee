"""What a device gets from a repository that is as it should be, and what it says of its clock."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

from tests.support.trusted import CARS, NOW, Device, Publisher
from toolchain.bundle import open_bundle
from toolchain.trust import Unit, blob_place, check_manifest, manifest_place


def test_a_device_gets_every_release_with_its_counter(publisher: Publisher, device: Device) -> None:
    trusted = device.look(NOW)
    assert set(trusted.releases) == {"backbones/resnet20", "domains/cars", "domains/flowers"}
    cars = trusted.release(CARS)
    assert cars is not None
    assert cars.counter == 1
    opened = open_bundle(publisher.dist / "cars.da3b")
    assert cars.manifest.digest == opened.manifest_digest
    assert cars.backbone == trusted.releases["backbones/resnet20"].backbone
    assert cars.bytes == len(opened.manifest.to_json()) + sum(
        entry.size for entry in opened.manifest.files
    )
    assert trusted.unchecked == ()


def test_every_byte_of_a_release_lies_where_the_names_say(
    publisher: Publisher, device: Device
) -> None:
    for release in device.look(NOW).releases.values():
        for file in release.files:
            data = (
                publisher.site / manifest_place(release.unit, file.name, file.digest)
            ).read_bytes()
            manifest = check_manifest(release, data)
            for entry in manifest.files:
                assert (publisher.site / blob_place(entry.digest)).stat().st_size == entry.size


def test_a_new_release_has_the_next_counter(publisher: Publisher, device: Device) -> None:
    device.commit(device.look(NOW))
    publisher.release(version="2.0")
    assert device.look(NOW).releases["domains/cars"].counter == 2


def test_only_what_was_asked_for_is_fetched_and_the_backbone_that_it_needs(
    device: Device,
) -> None:
    trusted = device.look(NOW, units=[CARS])
    assert set(trusted.releases) == {"domains/cars", "backbones/resnet20"}
    assert "1.domain-flowers.json" not in device.fetcher.asked


def test_a_unit_without_a_release_yet_is_no_fault(publisher: Publisher, device: Device) -> None:
    from toolchain.trust import ceremonies

    publisher.ceremony(ceremonies.add, Unit(kind="domains", name="Käfer 2"))
    publisher.publish()
    trusted = device.look(NOW)
    assert "domains/Käfer 2" not in trusted.releases
    assert trusted.refused == {}
    publisher.release("Käfer 2")
    assert device.look(NOW).releases["domains/Käfer 2"].counter == 1


def test_a_second_look_downloads_the_timestamp_alone(device: Device) -> None:
    device.look(NOW)
    device.fetcher.asked.clear()
    device.look(NOW)
    assert device.fetcher.asked == ["2.root.json", "timestamp.json"]


def test_a_clock_that_is_behind_is_said_and_expiry_checked_at_the_publish(device: Device) -> None:
    trusted = device.look(datetime(1970, 1, 1, tzinfo=timezone.utc))
    (said,) = trusted.unchecked
    assert "the clock shows 1970-01-01" in said
    assert trusted.floors.clock == "2026-06-01T12:00:00Z"


def test_the_floor_of_the_clock_rises_with_each_publish(
    publisher: Publisher, device: Device
) -> None:
    device.look(NOW)
    publisher.later(days=1)
    publisher.publish()
    assert device.look(NOW + timedelta(days=1)).floors.clock == "2026-06-02T12:00:00Z"


def test_a_device_verifies_without_cryptography(publisher: Publisher, tmp_path: Path) -> None:
    script = """
import sys
sys.modules["cryptography"] = None
from pathlib import Path
from tests.support.trusted import Device, NOW
device = Device(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), Path(sys.argv[3]))
print(sorted(device.look(NOW).releases))
"""
    first = publisher.keys / "metadata" / "1.root.json"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "cache"), str(first), str(publisher.site)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "['backbones/resnet20', 'domains/cars', 'domains/flowers']"


def test_a_look_for_news_loads_no_numbers() -> None:
    """An agent at rest keeps what it has loaded: a refresh needs neither numpy nor pictures."""
    script = "import sys, toolchain.trust.client; print({'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_the_cache_may_be_lost_at_any_time(device: Device) -> None:
    trusted = device.look(NOW)
    for path in sorted(device.folder.rglob("*"), reverse=True):
        path.unlink() if path.is_symlink() or path.is_file() else path.rmdir()
    assert device.look(NOW) == trusted


def test_a_kept_part_of_python_tuf_is_there(publisher: Publisher, device: Device) -> None:
    """The client sets the time, and reads verified metadata, by attributes of python-tuf."""
    from tuf.ngclient import Updater

    device.look(NOW)
    updater = Updater(str(device.folder), "", fetcher=device.fetcher, bootstrap=device.root)
    assert isinstance(updater._trusted_set.reference_time, datetime)
    assert updater._trusted_set["root"] is updater._trusted_set.root
