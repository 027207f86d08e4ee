"""What a start of the device makes of a store that is not as it should be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import stored
from tests.support.stored import NOW, PATCHED, SAMPLE, TOY, add, bundle, filled, run
from toolchain.core.errors import StoreDamagedError
from toolchain.device import Runner
from toolchain.device.store.current import read_running
from toolchain.device.store.recovery import Recovery
from toolchain.device.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "store")


def recovered(store: Store) -> Recovery:
    with store.writing() as writer:
        recovery = writer.recover()
        assert store.verify().ok, store.verify().faults
        again = writer.recover()
        assert not again.mended
        assert not again.removed
    return recovery


def running(store: Store) -> set[str]:
    return set(store.state().running)


def spoil(path: Path) -> None:
    """Change one byte, as a disk does."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def bundle_of(store: Store, name: str) -> Path:
    return store.domain(name).resolve() / "bundle.da3b"


def test_a_sound_store_is_left_alone(store: Store) -> None:
    before = {path: path.lstat().st_mtime_ns for path in store.path.rglob("*")}
    recovery = recovered(store)
    assert (recovery.current, recovery.trial, recovery.events) == (1, None, ())
    assert {path: path.lstat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_starts_are_counted_and_the_fourth_rolls_back(store: Store) -> None:
    with store.writing() as writer:
        writer.activate({PATCHED: add(writer, PATCHED, 7)})
    for starts in (1, 2, 3):
        with store.writing() as writer:
            recovery = writer.recover()
        assert recovery.trial is not None
        assert recovery.trial.starts == starts
        assert running(store) == {TOY, SAMPLE, PATCHED}
    with store.writing() as writer:
        recovery = writer.recover()
    assert [event.what for event in recovery.events] == ["ROLLED_BACK"]
    assert running(store) == {TOY, SAMPLE}
    (failed,) = store.state().failed
    assert failed.reason == "4 starts without a commit"
    assert PATCHED not in store.state().floors.releases


def test_attempts_are_a_setting(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", attempts=1)
    with store.writing() as writer:
        writer.activate({PATCHED: add(writer, PATCHED)})
        writer.recover()
        assert running(store) == {TOY, SAMPLE, PATCHED}
        writer.recover()
    assert running(store) == {TOY, SAMPLE}


def test_a_trial_whose_link_was_never_exchanged_is_abandoned(store: Store) -> None:
    with store.writing() as writer:
        writer.activate({PATCHED: add(writer, PATCHED)})
    (store.path / "current").unlink()
    (store.path / "current").symlink_to("gen/1")
    assert [event.what for event in recovered(store).events] == ["ABANDONED"]
    assert running(store) == {TOY, SAMPLE}
    release = store.state().release(PATCHED, bundle("patched").manifest_digest)
    assert release.state == "INSTALLED"
    assert store.state().failed == ()


def gone(store: Store) -> None:
    (store.path / "current").unlink()


def dangling(store: Store) -> None:
    gone(store)
    (store.path / "current").symlink_to("gen/99")


def leading_out(store: Store) -> None:
    gone(store)
    (store.path / "current").symlink_to("/")


def a_folder(store: Store) -> None:
    gone(store)
    (store.path / "current" / "domains").mkdir(parents=True)


def without_its_generation(store: Store) -> None:
    shutil.rmtree(store.path / "gen")


def with_another_link(store: Store) -> None:
    link = store.path / "gen" / "1" / "domains" / "sample"
    link.unlink()
    link.symlink_to("../../../../elsewhere")


def without_the_domain(store: Store) -> None:
    shutil.rmtree(store.path / "domains")


def with_a_file_for_a_domain(store: Store) -> None:
    without_the_domain(store)
    (store.path / "domains").mkdir()
    (store.path / "domains" / "sample").write_text("")


LINKS = [
    *(gone, dangling, leading_out, a_folder, without_its_generation, with_another_link),
    *(without_the_domain, with_a_file_for_a_domain),
]


@pytest.mark.parametrize("change", LINKS, ids=[change.__name__ for change in LINKS])
def test_links_are_put_right_by_the_state(store: Store, change: Callable[[Store], None]) -> None:
    change(store)
    assert not store.verify().ok
    assert recovered(store).mended
    assert store.domain("sample").resolve().name == bundle("sample").manifest_digest[7:]


def test_what_was_half_made_is_removed(store: Store) -> None:
    left = [".state.json.0.partial", "rel/.x.partial", "gen/9", "backbones/.y.partial"]
    left.append(str(bundle_of(store, "sample").parent / ".installed.json.1.partial"))
    for name in left:
        (store.path / name).mkdir()
        (store.path / name / "file").write_bytes(b"half")
    assert len(recovered(store).removed) == len(left)


def test_damaged_content_falls_back_to_the_generation_before(store: Store) -> None:
    with store.writing() as writer:
        run(writer, PATCHED, counter=7)
    spoil(bundle_of(store, "patched"))
    recovery = recovered(store)
    assert [event.what for event in recovery.events] == ["DAMAGED", "FALLEN"]
    assert (recovery.current, running(store)) == (1, {TOY, SAMPLE})
    # It did not fail: it is installed anew, and its floor has not fallen.
    assert store.state().failed == ()
    assert store.state().floors.releases[PATCHED] == 7
    with store.writing() as writer:
        run(writer, PATCHED, counter=7)
    assert running(store) == {TOY, SAMPLE, PATCHED}
    assert store.verify().ok


def test_the_damage_of_a_trial_ends_it(store: Store) -> None:
    with store.writing() as writer:
        writer.activate({PATCHED: add(writer, PATCHED)})
    spoil(bundle_of(store, "patched"))
    assert recovered(store).trial is None
    assert running(store) == {TOY, SAMPLE}


def test_without_a_whole_generation_the_backbone_runs_alone(store: Store) -> None:
    spoil(bundle_of(store, "sample"))
    recovery = recovered(store)
    assert not recovery.refused
    assert running(store) == {TOY}
    found = read_running(store.path)
    assert found.backbone == store.backbone("toy").resolve()
    assert found.domains == {}
    with Runner(store.backbone("toy").resolve()) as runner:
        assert runner.domains == {}
    assert not store.domain("sample").exists()


def test_without_a_whole_backbone_nothing_runs_and_all_can_be_installed_anew(store: Store) -> None:
    spoil(store.backbone("toy") / "weights.safetensors")
    recovery = recovered(store)
    assert recovery.refused
    assert running(store) == set()
    assert read_running(store.path).backbone is None
    assert not (store.path / "current").exists()
    with store.writing() as writer:
        run(writer, TOY, SAMPLE)
    assert running(store) == {TOY, SAMPLE}


def a_byte(folder: Path) -> None:
    spoil(folder / "bundle.da3b")


def a_byte_of_the_record(folder: Path) -> None:
    spoil(folder / "installed.json")


def cut_short(folder: Path) -> None:
    (folder / "bundle.da3b").chmod(0o644)
    (folder / "bundle.da3b").write_bytes(b"")


def missing(folder: Path) -> None:
    (folder / "bundle.da3b").unlink()


def without_its_record(folder: Path) -> None:
    (folder / "installed.json").unlink()


def with_another_file(folder: Path) -> None:
    (folder / "extra").write_bytes(b"")


def a_link_to_the_same_bytes(folder: Path) -> None:
    (folder / "bundle.da3b").rename(folder.with_name("elsewhere"))
    (folder / "bundle.da3b").symlink_to(folder.with_name("elsewhere"))


DAMAGE = [
    *(a_byte, a_byte_of_the_record, cut_short, missing, without_its_record, with_another_file),
    a_link_to_the_same_bytes,
]


@pytest.mark.parametrize("change", DAMAGE, ids=[change.__name__ for change in DAMAGE])
def test_every_damage_of_content_is_found(store: Store, change: Callable[[Path], None]) -> None:
    change(store.domain("sample").resolve())
    (fault,) = store.verify().faults
    assert fault.startswith("domains/sample 1 (sha256:")
    recovered(store)
    assert running(store) == {TOY}


def test_a_damaged_journal_is_set_aside_and_the_chain_goes_on(store: Store) -> None:
    entries = store.history()
    spoil(store.layout.journal)
    with pytest.raises(StoreDamagedError):
        store.history()
    assert [event.what for event in recovered(store).events] == ["JOURNAL_LOST"]
    (first,) = store.history()
    assert (first.number, first.before != "") == (entries[-1].number + 1, True)
    assert store.layout.damaged_journal.is_file()
    assert running(store) == {TOY, SAMPLE}


def test_a_store_on_another_disk_is_the_same_store(store: Store, tmp_path: Path) -> None:
    """Inodes and times differ; bytes and links do not."""
    shutil.copytree(store.path, tmp_path / "copy", symlinks=True, copy_function=shutil.copy)
    copy = Store.open(tmp_path / "copy")
    assert copy.verify().ok
    assert recovered(copy).events == ()
    with Runner(copy.backbone("toy").resolve()) as runner:
        assert runner.load(copy.domain("sample"), name="sample").name == "sample"
    assert copy.verify().ok
    assert running(copy) == {TOY, SAMPLE}


@pytest.mark.parametrize("now", ["1970-01-01T00:00:00Z", "2040-01-01T00:00:00Z", NOW])
def test_the_clock_decides_nothing(store: Store, now: str) -> None:
    with store.writing() as writer:
        writer.raise_floors({"root": 3}, "2026-03-01T00:00:00Z", now=now)
        writer.activate({PATCHED: add(writer, PATCHED, 7)}, now=now)
        writer.recover(now=now)
        writer.commit(now=now)
    floors = store.state().floors
    assert (floors.clock, dict(floors.metadata)) == ("2026-03-01T00:00:00Z", {"root": 3})
    assert floors.releases[PATCHED] == 7
    assert store.history()[-1].at == now


def test_a_store_in_which_nothing_was_installed(tmp_path: Path) -> None:
    store = stored.create(tmp_path / "store")
    recovery = recovered(store)
    assert (recovery.current, recovery.refused, recovery.events) == (0, False, ())
