"""State files that were changed: each is an error of ours, and what runs runs on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.stored import PATCHED, SAMPLE, TOY, add, bundle, filled
from toolchain.core.digest import sha256
from toolchain.core.errors import StorageError, StoreDamagedError
from toolchain.device.store.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in the middle of a trial, with everything in its state; nobody changes it."""
    store = filled(tmp_path_factory.mktemp("hostile") / "store")
    with store.writing() as writer:
        writer.activate({PATCHED: add(writer, PATCHED, 2)})
        writer.roll_back(reason="a test")
        writer.raise_floors({"root": 2}, "2026-02-01T00:00:00Z")
        writer.report({"outcome": "failed"})
        writer.activate({PATCHED: bundle("patched").manifest_digest})
    return store.path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made, tmp_path / "store", symlinks=True)
    return Store.open(tmp_path / "store")


def refused(store: Store) -> None:
    before = (store.path / "current").readlink()
    with pytest.raises((StoreDamagedError, StorageError)) as caught:
        store.state()
    assert caught.value.fix
    assert len(str(caught.value)) < 5_000
    with pytest.raises((StoreDamagedError, StorageError)), store.writing() as writer:
        writer.recover()
    assert (store.path / "current").readlink() == before
    assert (store.domain("sample") / "bundle.da3b").is_file()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def of_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def with_one_bit_changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def without_its_digest(path: Path) -> None:
    path.write_bytes(path.read_bytes().partition(b"\n")[2])


def of_100_megabytes(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100 << 20)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


FILES = [
    *(emptied, cut_short, of_zeros, with_one_bit_changed, without_its_digest, of_100_megabytes),
    *(a_pipe, a_folder, a_link_to_nowhere),
]


@pytest.mark.parametrize("change", FILES, ids=[change.__name__ for change in FILES])
def test_a_state_that_is_no_state_is_refused(store: Store, change: Callable[[Path], None]) -> None:
    change(store.layout.state)
    refused(store)


TEXTS = {
    "nothing": b"",
    "no object": b"[]",
    "deep": b"[" * 100_000,
    "a key twice": b'{"schema":"da3.store/1","schema":"da3.store/1"}',
    "not canonical": b'{"schema": "da3.store/1"}',
    "NaN": b'{"current":NaN}',
    "not UTF-8": b'{"schema":"\xff"}',
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_is_no_state_is_refused_whatever_its_digest(store: Store, case: str) -> None:
    text = TEXTS[case]
    store.layout.state.write_bytes(f"{sha256(text)}\n".encode() + text)
    refused(store)


Change = Callable[[dict[str, Any]], Any]
A_DIGEST = "sha256:" + "1" * 64
RESEALED: dict[str, Change] = {
    "another schema": lambda s: s.update(schema="da3.store/2"),
    "an unknown key": lambda s: s.update(more=1),
    "a current generation that is not there": lambda s: s.update(current=7),
    "a previous generation that is not there": lambda s: s.update(previous=7),
    "a negative generation": lambda s: s.update(current=-1),
    "a generation of a huge number": lambda s: s["generations"][0].update(number=2**60),
    "a generation above the last": lambda s: s.update(last=1),
    "a generation twice": lambda s: s["generations"].append(s["generations"][0]),
    "a hundred generations": lambda s: s.update(generations=s["generations"] * 50),
    "a unit with a path": lambda s: s["generations"][0]["units"].update({"domains/../x": A_DIGEST}),
    "a unit of another kind": lambda s: s["generations"][0]["units"].update({"etc/x": A_DIGEST}),
    "what is not installed": lambda s: s["generations"][0]["units"].update({SAMPLE: A_DIGEST}),
    "no digest": lambda s: s["generations"][0]["units"].update({SAMPLE: "../../x"}),
    "a release twice": lambda s: s["held"].append(s["held"][0]),
    "a release without files that runs": lambda s: s["held"][0].update(files=[]),
    "a release without a backbone": lambda s: s["held"][0].update(fits=None),
    "a file with a path": lambda s: s["held"][0]["files"][0].update(name="../x"),
    "a file of a negative size": lambda s: s["held"][0]["files"][0].update(size=-1),
    "a state of no name": lambda s: s["held"][0].update(state="TRUSTED"),
    "a negative counter": lambda s: s["held"][0].update(counter=-1),
    "a counter that is text": lambda s: s["held"][0].update(counter="9"),
    "a signature that is a number": lambda s: s["held"][0].update(signed=1),
    "a floor that is text": lambda s: s["floors"]["releases"].update({TOY: "1"}),
    "a floor of a path": lambda s: s["floors"]["releases"].update({"../x": 1}),
    "a clock that is no time": lambda s: s["floors"].update(clock="tomorrow"),
    "a trial of another generation": lambda s: s["trial"].update(generation=1),
    "a trial before nothing": lambda s: s["trial"].update(before=9),
    "a trial without starts": lambda s: s["trial"].pop("starts"),
    "a million starts": lambda s: s["settings"].update(attempts=10**6),
    "reports out of order": lambda s: s["reports"].append({**s["reports"][0], "id": 0}),
    "a report that was never made": lambda s: s.update(reported=0),
    "a report with a list": lambda s: s["reports"][0]["about"].update(a=[1]),
    "a thousand failed ones": lambda s: s.update(failed=s["failed"] * 1000),
    "a reason of two lines": lambda s: s["failed"][0].update(reason="a\nb"),
    "a head of no digest": lambda s: s["journal"].update(digest="1"),
    "a journal of no bytes": lambda s: s["settings"].update(journal_bytes=0),
}


@pytest.mark.parametrize("case", RESEALED)
def test_a_state_that_was_changed_and_resealed_is_refused(store: Store, case: str) -> None:
    value = json.loads(store.layout.state.read_bytes().partition(b"\n")[2])
    RESEALED[case](value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    store.layout.state.write_bytes(f"{sha256(text)}\n".encode() + text)
    refused(store)


def test_a_journal_that_ends_elsewhere_is_told_and_set_aside(store: Store) -> None:
    store.layout.journal.write_bytes(b"")
    assert not store.verify().ok
    with store.writing() as writer:
        assert writer.recover().events[0].what == "JOURNAL_LOST"
    assert store.verify().ok


def test_a_store_without_a_root_says_what_cannot_be_checked(store: Store) -> None:
    store.layout.trust_root.unlink()
    (store.path / "part" / ("1" * 64)).write_bytes(b"half")
    (store.path / "engines" / ("2" * 64)).mkdir()
    report = store.verify()
    assert report.ok
    assert [line.partition(":")[0] for line in report.unchecked] == [
        "signatures and expiry",
        "root",
        "part",
        "engines",
    ]
