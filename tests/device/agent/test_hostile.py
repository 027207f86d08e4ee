"""Bad bundles, backbones, kits and metadata, each named after its attack, through the agent.

Law: none changes what runs, none ends the agent, and each is refused for its own reason. A device
and its site are made once; each attack gets copies.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.support import attacks_archive, attacks_manifest, attacks_metadata, attacks_site
from tests.support.attacks_site import new_release
from tests.support.forged import Attacked, Forger, attacked, outcome, prepare
from tests.support.samples import edited, with_slots
from tests.support.trusted import CARS, NOW
from toolchain.core.errors import Da3Error
from toolchain.device.agent import by_hand
from toolchain.device.agent.loop import MEMORY_BYTES, round_words

PUBLISHED = attacks_metadata.SIGNED | attacks_site.BACKBONES | attacks_site.MIRROR


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A publisher and a device; nobody changes them."""
    home = tmp_path_factory.mktemp("hostile") / "made"
    prepare(home, NOW)
    return home


@pytest.fixture
def device(made: Path, tmp_path: Path) -> Attacked:
    return attacked(made, tmp_path)


def test_there_are_enough_of_them() -> None:
    names = [*PUBLISHED, *attacks_manifest.ATTACKS, *attacks_archive.ATTACKS, *FILES]
    assert len(set(names)) == len(names) >= 250


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_repository_does_is_refused(name: str, device: Attacked) -> None:
    attack = PUBLISHED[name]
    attack.make(device.forger)
    assert attack.says in outcome(device.field)
    device.unharmed()


@pytest.mark.parametrize("name", attacks_manifest.ATTACKS)
def test_a_bad_bundle_that_the_right_key_has_signed_is_refused(name: str, device: Attacked) -> None:
    attack = attacks_manifest.ATTACKS[name]
    device.forger.bundle(attack.make(device.forger.good()))
    assert attack.says in outcome(device.field)
    device.unharmed()


@pytest.mark.parametrize("name", attacks_archive.ATTACKS)
def test_a_bad_archive_by_hand_is_refused(name: str, device: Attacked, tmp_path: Path) -> None:
    attack = attacks_archive.ATTACKS[name]
    bad = tmp_path / "bad.da3b"
    bad.write_bytes(attack.make(device.forger.good()))
    device.field.policy(unsigned=True)
    with pytest.raises(Da3Error) as caught:
        by_hand.install(device.field.device, str(bad))
    assert attack.says in caught.value.message
    device.unharmed()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def zeros_without_end(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def folder_with_nothing_in_it(path: Path) -> None:
    path.mkdir()


def folder_of_pipes(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "manifest.json")


def folder_whose_manifest_is_zeros_without_end(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").symlink_to("/dev/zero")


def bundle_of_a_terabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


FILES: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        *(pipe, zeros_without_end, link_to_itself, folder_with_nothing_in_it, folder_of_pipes),
        *(folder_whose_manifest_is_zeros_without_end, bundle_of_a_terabyte),
    )
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_refused_by_hand(name: str, device: Attacked, tmp_path: Path) -> None:
    FILES[name](tmp_path / "bad.da3b")
    device.field.policy(unsigned=True)
    with pytest.raises(Da3Error, match=r"bad\.da3b"):
        by_hand.install(device.field.device, str(tmp_path / "bad.da3b"))
    device.unharmed()


def test_a_refusal_is_reported_once_in_words_that_the_store_can_keep(device: Attacked) -> None:
    attack = attacks_manifest.ATTACKS["role_twice"]
    device.forger.bundle(attack.make(device.forger.good()))
    for _ in range(2):
        assert "\n" in outcome(device.field)
    (report,) = device.field.store.state().reports
    assert "one file of role 'domain', got 2" in str(report.about["reason"])


def test_a_bad_release_holds_no_good_one_back(device: Attacked) -> None:
    """The next one is taken in: it comes as far as its graphs, of which the samples have none."""
    device.forger.bundle(attacks_manifest.ATTACKS["unknown_field"].make(device.forger.good()))
    assert "unknown key" in outcome(device.field)
    new_release(device.forger)
    assert "expected the linked graph swap-if, got []" in outcome(device.field)
    device.unharmed()


def test_the_id_of_a_key_that_is_a_number_is_no_key(device: Attacked) -> None:
    """python-tuf lets it pass; the right key beside it has signed."""
    device.forger.change(
        "targets", lambda signed: signed["delegations"]["roles"][-1]["keyids"].append(7)
    )
    assert outcome(device.field) == ""
    device.unharmed()


# -- memory and time -----------------------------------------------------------------------------


def wide_manifest(forger: Forger) -> None:
    """Sixteen megabytes of empty lists: each takes many times its two bytes in memory."""
    forger.release(CARS, b'{"classes":[' + b"[]," * ((16 << 20) // 3 - 8) + b"[]]}", {})


def manifest_of_a_million_keys(forger: Forger) -> None:
    keys = ",".join(f'"{at:07}":0' for at in range(1_250_000))
    forger.release(CARS, b"{" + keys.encode() + b"}", {})


def header_of_slots_of_48_megabytes(forger: Forger) -> None:
    header = b'{"a":"' + b"a" * (48 << 20) + b'"}'
    slots = len(header).to_bytes(8, "little") + header
    forger.bundle(with_slots(forger.good(), slots))


def faults_without_end(forger: Forger) -> None:
    """Each class is a fault, and all faults are told at once."""
    forger.bundle(
        edited(forger.good(), lambda document: document.update(classes=["\x1b"] * 500_000))
    )


WORST = [
    pytest.param(wide_manifest, marks=pytest.mark.full),
    header_of_slots_of_48_megabytes,
    pytest.param(manifest_of_a_million_keys, marks=pytest.mark.full),
    pytest.param(faults_without_end, marks=pytest.mark.full),
]


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, published now: a process asks the system's clock."""
    home = tmp_path_factory.mktemp("worst") / "made"
    prepare(home, datetime.now(timezone.utc).replace(microsecond=0))
    return home


@pytest.mark.parametrize("attack", WORST, ids=lambda attack: attack.__name__)
def test_the_worst_keep_within_memory_and_time(
    attack: Callable[[Forger], None], today: Path, tmp_path: Path
) -> None:
    device = attacked(today, tmp_path, datetime.now(timezone.utc))
    attack(device.forger)
    told, seconds = a_round(device.field.store.path)
    assert [one["unit"] for one in told["round"]["failed"]] == [str(CARS)]
    assert seconds < 30
    device.unharmed()


def a_round(store: Path) -> tuple[dict[str, dict[str, list[dict[str, str]]]], float]:
    """Run a round as the loop does, with its limit on memory; return answer and processor time.

    The system's peak would tell nothing: after a fork it is the parent's as well (getrusage(2)).
    """
    process = subprocess.Popen(round_words(store), stdout=subprocess.PIPE)
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    return json.loads(answer), used.ru_utime + used.ru_stime
