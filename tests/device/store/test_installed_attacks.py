"""Installed folders that were changed: each is an error of ours, and the others are served on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.drawn import same, tensor
from tests.support.exported import Fleet
from toolchain.core import canonical
from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, Da3Error, StorageError
from toolchain.device import Runner
from toolchain.device.store import installed
from toolchain.device.store.layout import BUNDLE_NAME, RECORD_NAME


def edited(folder: Path) -> None:
    path = folder / BUNDLE_NAME
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncated(folder: Path) -> None:
    path = folder / BUNDLE_NAME
    os.truncate(path, path.stat().st_size - 1)


def emptied(folder: Path) -> None:
    os.truncate(folder / BUNDLE_NAME, 0)


def other_release(folder: Path, fleet: Fleet) -> None:
    """A bundle that is good, and another than the one that was installed."""
    (folder / BUNDLE_NAME).unlink()
    shutil.copy(fleet["next"].bundle, folder / BUNDLE_NAME)


def with_a_pipe(folder: Path) -> None:
    (folder / BUNDLE_NAME).unlink()
    os.mkfifo(folder / BUNDLE_NAME)


def with_a_folder(folder: Path) -> None:
    (folder / BUNDLE_NAME).unlink()
    (folder / BUNDLE_NAME).mkdir()


def without_a_bundle(folder: Path) -> None:
    (folder / BUNDLE_NAME).unlink()


def without_a_record(folder: Path) -> None:
    (folder / RECORD_NAME).unlink()


def with_a_huge_record(folder: Path) -> None:
    (folder / RECORD_NAME).write_bytes(b" " * (canonical.LIMIT_BYTES + 1))


ATTACKS = [
    edited,
    truncated,
    emptied,
    with_a_pipe,
    with_a_folder,
    without_a_bundle,
    without_a_record,
    with_a_huge_record,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=[a.__name__ for a in ATTACKS])
def test_a_changed_folder_is_refused_and_the_others_go_on(
    runner: Runner, fleet: Fleet, folder: Path, attack: Callable[[Path], None]
) -> None:
    runner.load(fleet["next"].bundle)
    before = runner.infer(tensor(2)).logits
    attack(folder)
    with pytest.raises((BundleError, StorageError)):
        runner.load(folder, name="kept")
    with pytest.raises((BundleError, StorageError)):
        runner.replace(folder)
    assert set(runner.domains) == {"toy_chirps"}
    assert same(runner.infer(tensor(2)).logits, before)


def test_another_release_in_the_place_of_the_installed_one_is_refused(
    runner: Runner, fleet: Fleet, folder: Path
) -> None:
    before = (folder / RECORD_NAME).read_bytes()
    other_release(folder, fleet)
    with pytest.raises(BundleError, match="expected the release sha256:") as caught:
        runner.load(folder)
    assert caught.value.fix == "install it again from its bundle"
    assert (folder / RECORD_NAME).read_bytes() == before


def test_a_moved_folder_is_the_same_folder(runner: Runner, folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "elsewhere")
    assert runner.load(tmp_path / "elsewhere").name == "toy_chirps"


def test_slots_changed_in_place_with_the_time_put_back_are_refused(
    runner: Runner, folder: Path
) -> None:
    """Size, inode and time of the content are as they were; the file's own time is not."""
    path = folder / BUNDLE_NAME
    status = path.stat()
    offset = json.loads((folder / RECORD_NAME).read_bytes().partition(b"\n")[2])["slots"]["offset"]
    size = int.from_bytes(path.read_bytes()[offset : offset + 8], "little")
    with path.open("r+b") as file:
        file.seek(offset + 8 + size)
        file.write(b"\0\0\0\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    with pytest.raises(BundleError) as caught:
        runner.load(folder)
    assert caught.value.fix == "install it again from its bundle"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_one_changed_byte_of_the_record_is_found(folder: Path, data: st.DataObject) -> None:
    """Law: any byte, any other value."""
    path = folder / RECORD_NAME
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(changed)
        with pytest.raises(BundleError):
            installed.read(folder)
    finally:
        path.write_bytes(whole)


def resealed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the record and put its digest right."""
    path = folder / RECORD_NAME
    record = json.loads(path.read_bytes().partition(b"\n")[2])
    change(record)
    body = json.dumps(record).encode()
    path.write_bytes(f"{sha256(body)}\n".encode() + body)


RESEALED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an array elsewhere": lambda r: r["arrays"][0].__setitem__(3, 1 << 40),
    "an array before": lambda r: r["arrays"][0].__setitem__(3, -4),
    "an array of objects": lambda r: r["arrays"][0].__setitem__(1, "O"),
    "an array of another shape": lambda r: r["arrays"][0].__setitem__(2, [1 << 40]),
    "an array that is a number": lambda r: r["arrays"].__setitem__(0, 5),
    "an array of a list's name": lambda r: r["arrays"][0].__setitem__(0, []),
    "an array too few": lambda r: r["arrays"].pop(),
    "slots beyond the end": lambda r: r["slots"].update(offset=500_000_000),
    "slots of 500 MB": lambda r: r["slots"].update(size=500_000_000),
    "fewer slots": lambda r: r["slots"].update(size=r["slots"]["size"] - 4),
    "negative offset": lambda r: r["slots"].update(offset=-1),
    "another schema": lambda r: r.update(schema="da3.installed/3"),
    "an unknown key": lambda r: r.update(more=1),
    "a missing key": lambda r: r.pop("gates"),
    "classes of a number": lambda r: r.update(classes=[1]),
    "a name with a path": lambda r: r.update(name="../up"),
    "another backbone": lambda r: r["backbone"].update(graph_digest="sha256:" + "0" * 64),
    "no graphs": lambda r: r.update(graphs={}),
    "tolerance of nothing": lambda r: r.update(tolerance=None),
}


@pytest.mark.parametrize("case", RESEALED)
def test_a_record_that_was_changed_and_resealed_is_an_error_of_ours(
    runner: Runner, folder: Path, case: str
) -> None:
    resealed(folder, RESEALED[case])
    with pytest.raises(Da3Error):
        runner.load(folder)
    assert runner.domains == {}


def test_a_record_that_names_another_release_is_refused_where_the_bundle_is_read(
    artefact: Path, folder: Path
) -> None:
    resealed(folder, lambda r: r.update(release="sha256:" + "1" * 64))
    release = installed.read(folder).release
    for ask in (release.golden, release.graph("swap-if").read):
        with pytest.raises(BundleError, match="expected the release sha256:1111"):
            ask()


@pytest.mark.parametrize("text", [b"", b"\n", b"[" * 100_000, b"null", b"NaN", b'{"a":1,"a":2}'])
def test_a_record_that_is_no_record_is_refused(folder: Path, text: bytes) -> None:
    (folder / RECORD_NAME).write_bytes(f"{sha256(text)}\n".encode() + text)
    with pytest.raises(BundleError):
        installed.read(folder)


def test_a_folder_that_is_no_installed_domain_is_told(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="installed domain"):
        runner.load(tmp_path)
