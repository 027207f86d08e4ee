"""The store from creation to rollback, on real bundles and a real backbone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import stored
from tests.support.stored import BACKBONE, NOW, PATCHED, SAMPLE, TOY, add, bundle, filled, run
from toolchain.core.errors import (
    BundleError,
    ExistsError,
    FloorError,
    LockedError,
    QuotaError,
    StorageError,
    StoreError,
    TrialError,
    UsageError,
)
from toolchain.core.units import Unit
from toolchain.device import Runner
from toolchain.device.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "store")


def answers(store: Store, unit: str) -> str:
    """The release that an application finds for a domain."""
    return f"sha256:{store.domain(Unit.parse(unit).name).resolve().name}"


def test_what_is_committed_is_what_a_runner_loads(store: Store) -> None:
    with Runner(store.backbone("toy").resolve()) as runner:
        assert runner.load(store.path / "domains" / "sample" / "current").name == "sample"
    state = store.state()
    assert {unit: one.state for unit, one in state.running.items()} == {
        TOY: "COMMITTED",
        SAMPLE: "COMMITTED",
    }
    assert dict(state.floors.releases) == {TOY: 1, SAMPLE: 1}
    assert store.verify().ok


def test_a_release_is_tried_then_committed_and_only_then_its_floor_rises(store: Store) -> None:
    with store.writing() as writer:
        digest = add(writer, PATCHED, 7)
        assert writer.activate({PATCHED: digest}) == 2
        assert store.state().floors.releases.get(PATCHED) is None
        assert store.state().running[PATCHED].state == "TRYING"
        writer.commit()
    assert store.state().floors.releases[PATCHED] == 7
    assert answers(store, PATCHED) == digest
    assert [entry.what for entry in store.history()][-3:] == ["INSTALLED", "TRYING", "COMMITTED"]


def test_rolling_back_is_the_same_rename_back_and_is_remembered(store: Store) -> None:
    with store.writing() as writer:
        digest = add(writer, PATCHED, 7)
        writer.activate({PATCHED: digest})
        writer.roll_back(reason="it answered\nnothing", now="2026-02-01T00:00:00Z")
    state = store.state()
    assert (state.current, state.previous, state.trial) == (1, 0, None)
    (failed,) = state.failed
    assert (failed.unit, failed.counter, failed.digest) == (PATCHED, 7, digest)
    assert (failed.reason, failed.at) == ("it answered nothing", "2026-02-01T00:00:00Z")
    assert not store.domain("patched").exists()
    assert answers(store, SAMPLE) == bundle("sample").manifest_digest
    assert PATCHED not in state.floors.releases


def test_a_committed_generation_can_be_left_too(store: Store) -> None:
    with store.writing() as writer:
        run(writer, PATCHED)
        writer.roll_back(reason="by hand")
        assert store.state().current == 1
        with pytest.raises(StoreError, match="expected a generation before"):
            writer.roll_back(reason="again")
    assert store.verify().ok


def test_a_domain_is_removed_by_the_same_step(store: Store) -> None:
    with store.writing() as writer:
        writer.activate({SAMPLE: None})
        assert not store.domain("sample").exists()
        assert (store.path / "domains" / "sample" / "previous").resolve().is_dir()
        writer.roll_back(reason="still needed")
    assert answers(store, SAMPLE) == bundle("sample").manifest_digest


def test_a_domain_needs_its_backbone_in_the_same_generation(tmp_path: Path) -> None:
    store = stored.create(tmp_path / "store")
    with store.writing() as writer:
        digests = {unit: add(writer, unit) for unit in (TOY, SAMPLE)}
        with pytest.raises(StoreError, match="expected the backbone toy of sha256:"):
            writer.activate({SAMPLE: digests[SAMPLE]})
        writer.activate(digests)
        writer.commit()
        with pytest.raises(StoreError, match="activate the backbone and its domains in one step"):
            writer.activate({TOY: None})
        writer.activate({TOY: None, SAMPLE: None})
        writer.commit()
    assert store.state().running == {}


def test_a_counter_below_the_floor_is_refused_before_a_byte_is_written(store: Store) -> None:
    with store.writing() as writer:
        run(writer, PATCHED, counter=7)
        before = sorted(store.path.rglob("*"))
        with pytest.raises(FloorError, match="expected a release of counter 7 or above, got 6"):
            add(writer, PATCHED, 6)
        with pytest.raises(FloorError):
            writer.fetched(PATCHED, 6, "sha256:" + "5" * 64)
        with pytest.raises(FloorError):
            writer.add_backbone(TOY, 0, BACKBONE, signed=True)
        assert sorted(store.path.rglob("*")) == before


def test_a_counter_names_one_content(store: Store) -> None:
    """The key of a unit has signed twice."""
    with store.writing() as writer, pytest.raises(StoreError, match="expected counter 1 to name"):
        writer.fetched(SAMPLE, 1, "sha256:" + "5" * 64)


def test_old_content_under_a_higher_counter_is_a_rollback_that_somebody_released(
    store: Store,
) -> None:
    with store.writing() as writer:
        add(writer, SAMPLE, 9)
        # It ran and was committed: its counter alone is new.
        assert store.state().running[SAMPLE].state == "COMMITTED"
        with pytest.raises(UsageError, match="what runs already"):
            writer.activate({SAMPLE: bundle("sample").manifest_digest})
    assert store.state().floors.releases[SAMPLE] == 9


def test_an_unsigned_release_stands_outside_of_the_history(store: Store) -> None:
    with store.writing() as writer:
        run(writer, PATCHED, counter=7)
        for gone in (PATCHED, SAMPLE):
            writer.activate({gone: None})
            writer.commit()
        writer.gc()
        writer.activate({PATCHED: add(writer, PATCHED, 0, signed=False)})
        writer.commit()
    assert store.state().floors.releases[PATCHED] == 7
    assert not store.state().running[PATCHED].signed


def test_one_trial_at_a_time(store: Store) -> None:
    with store.writing() as writer:
        digest = add(writer, PATCHED)
        with pytest.raises(TrialError, match="expected a trial under way"):
            writer.commit()
        writer.activate({PATCHED: digest})
        with pytest.raises(TrialError, match="got that of generation 2"):
            writer.activate({SAMPLE: None})


def test_what_is_not_installed_is_not_activated(store: Store) -> None:
    with store.writing() as writer:
        with pytest.raises(UsageError, match="install it first"):
            writer.activate({PATCHED: bundle("patched").manifest_digest})
        with pytest.raises(UsageError, match="expected the name of one of the domains"):
            writer.activate({"domains/../x": bundle("patched").manifest_digest})
        with pytest.raises(UsageError, match="expected a bundle of domains/other"):
            writer.add_release("domains/other", 1, bundle("sample"), "", signed=True)
        with pytest.raises(UsageError, match="expected the backbone of backbones/other"):
            writer.add_backbone("backbones/other", 1, BACKBONE, signed=True)
        with pytest.raises((BundleError, StorageError)):
            writer.add_backbone(TOY, 2, store.path, signed=True)


def test_two_writers_at_once_and_the_other_is_named(store: Store) -> None:
    code = f"""
import sys
from toolchain.core.errors import LockedError
from toolchain.device.store.store import Store
try:
    with Store.open({str(store.path)!r}).writing():
        pass
except LockedError as err:
    sys.exit(str(err))
"""
    with store.writing() as writer:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert f"process {os.getpid()} on" in done.stderr
        with pytest.raises(LockedError), store.writing():
            pass
        writer.report({"still": "writing"})
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_quota_is_refused_before_it_is_written(tmp_path: Path) -> None:
    store = stored.create(tmp_path / "store", quota_bytes=60_000)
    with store.writing() as writer:
        add(writer, TOY)
        before = sorted(store.path.rglob("*"))
        with pytest.raises(QuotaError, match="expected at most 60000 bytes"):
            add(writer, SAMPLE)
        with pytest.raises(QuotaError):
            writer.part("sha256:" + "1" * 64, 50_000)
        assert sorted(store.path.rglob("*")) == before
        part = writer.part("sha256:" + "1" * 64, 5_000)
        part.write_bytes(b"x" * 3_000)
        assert writer.part("sha256:" + "1" * 64, 5_000).stat().st_size == 3_000
        # More than there should be: it is another file.
        assert not writer.part("sha256:" + "1" * 64, 2_000).exists()


def test_a_collection_keeps_what_runs_what_ran_and_what_is_under_way(store: Store) -> None:
    with store.writing() as writer:
        run(writer, PATCHED)
        writer.activate({PATCHED: None})
        writer.commit()
        for name in (bundle("sample").manifest_digest[7:], add(writer, TOY)[7:]):
            (store.path / "engines" / name / "plan").mkdir(parents=True)
        parts = [writer.part(f"sha256:{digit * 64}", 10) for digit in "12"]
        for part in parts:
            part.write_bytes(b"x")
        (store.path / "engines" / ("3" * 64)).mkdir()
        assert writer.gc(keep_parts=[f"sha256:{'1' * 64}"]).removed == (
            f"engines/{'3' * 64}",
            "gen/1",
            f"part/{'2' * 64}",
        )  # fmt: skip
        assert add(writer, PATCHED, 2) == bundle("patched").manifest_digest
        writer.activate({SAMPLE: None})
        writer.commit()
        assert (store.path / "rel" / bundle("patched").manifest_digest[7:]).is_dir()
        report = writer.gc()
        assert "domains/patched" in report.removed
    assert store.verify().ok


def test_floors_of_metadata_and_clock_never_fall(store: Store) -> None:
    with store.writing() as writer:
        writer.raise_floors({"root": 3, "domain-sample": 5}, "2026-03-01T00:00:00Z")
        entries = len(store.history())
        writer.raise_floors({"root": 2}, "1970-01-01T00:00:00Z", now="1970-01-01T00:00:00Z")
        assert len(store.history()) == entries
        writer.raise_floors({"root": 4}, "2025-01-01T00:00:00Z", now="2040-01-01T00:00:00Z")
    floors = store.state().floors
    assert dict(floors.metadata) == {"root": 4, "domain-sample": 5}
    assert floors.clock == "2026-03-01T00:00:00Z"


def test_a_state_that_could_not_be_read_again_is_never_written(store: Store) -> None:
    """A repository may have more roles than a store remembers; a caller may say odd things."""
    before = store.layout.state.read_bytes(), store.layout.journal.read_bytes()
    with store.writing() as writer:
        for floors, clock in (
            ({f"domain-{number}": 1 for number in range(5000)}, NOW),
            ({"": 1}, NOW),
            ({"root": 1}, "tomorrow"),
        ):
            with pytest.raises(StoreError, match="expected what a store can remember"):
                writer.raise_floors(floors, clock)
        with pytest.raises(StoreError):
            writer.report({"a list": [1]})  # type: ignore[dict-item]
        with pytest.raises(StoreError):
            writer.fetched(SAMPLE, 2**60, "sha256:" + "1" * 64)
    assert (store.layout.state.read_bytes(), store.layout.journal.read_bytes()) == before


def test_reports_are_kept_until_they_are_confirmed(store: Store) -> None:
    with store.writing() as writer:
        first = writer.report({"unit": SAMPLE, "outcome": "failed"})
        second = writer.report({"outcome": "refused"})
        writer.confirm(first)
        writer.confirm(first)
    (left,) = store.state().reports
    assert (left.id, left.at, dict(left.about)) == (second, NOW, {"outcome": "refused"})


def test_a_store_is_made_once_also_in_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = stored.create(tmp_path / "store")
    with pytest.raises(ExistsError, match="expected no store"):
        stored.create(tmp_path / "store")
    assert Store.open(store.path).state().current == 0
    with pytest.raises(StorageError, match="expected a store"):
        Store.open(tmp_path)


def test_names_of_every_script_and_with_spaces(tmp_path: Path) -> None:
    name = "Käfer am Bach 昆虫"
    assert Unit.parse(f"domains/{name}") == Unit("domains", name)
    for bad in ("domains/a/b", "domains/..", "cars", "domains/", "models/x", "domains/a "):
        with pytest.raises(UsageError):
            Unit.parse(bad)


def test_the_store_is_opened_without_numpy() -> None:
    """An agent at rest holds little memory."""
    code = "import sys, toolchain.device.store.store as s; assert 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
