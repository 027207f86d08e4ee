"""Stores of every schema that there was: later versions open them and go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.stored import NOW, PATCHED, SAMPLE, TOY
from toolchain.device import Runner
from toolchain.device.store.store import Store

STORES = sorted((Path(__file__).parents[2] / "stores").iterdir())


@pytest.fixture(params=STORES, ids=[path.name for path in STORES])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    shutil.copytree(request.param, tmp_path / "store", symlinks=True)
    return Store.open(tmp_path / "store")


def test_a_store_of_an_earlier_version_goes_on(store: Store) -> None:
    state = store.state()
    assert set(state.running) == {TOY, SAMPLE, PATCHED}
    assert (state.current, state.previous) == (3, 1)
    assert dict(state.floors.metadata) == {"root": 2, "domain-sample": 1}
    assert (state.floors.clock, state.settings.quota_bytes) == (NOW, 1 << 30)
    assert [report.about["outcome"] for report in state.reports] == ["failed"]
    assert [failed.reason for failed in state.failed] == ["it answered nothing"]
    assert store.verify().ok
    with store.writing() as writer:
        assert writer.recover().trial is not None
        writer.commit()
    assert dict(store.state().floors.releases) == {TOY: 1, SAMPLE: 1, PATCHED: 3}
    assert [entry.what for entry in store.history()][-2:] == ["STARTED", "COMMITTED"]


def test_what_it_runs_is_loaded(store: Store) -> None:
    with Runner(store.backbone("toy").resolve()) as runner:
        assert runner.load(store.domain("sample")).name == "sample"
