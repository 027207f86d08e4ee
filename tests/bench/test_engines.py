"""What is measured of an engine, on a device in memory; no figure is tested."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.exported import Fleet
from tests.support.simulated.engines import deploy, given_back, simulated
from toolchain.bench.engines import measure
from toolchain.core.errors import UsageError
from toolchain.device.engine.cache import open_engine
from toolchain.device.runtime.trt.plan import TrtDevice


@pytest.fixture
def device() -> Iterator[TrtDevice]:
    yield from given_back(simulated())


def test_everything_is_measured(device: TrtDevice, fleet: Fleet, tmp_path: Path) -> None:
    path = deploy(fleet["first"], tmp_path, device)
    bundles = [fleet["first"].bundle, fleet["digits"].bundle]
    document = measure(path, bundles, rounds=2, device=device)
    assert document["unchanged"]
    assert document["engine"] == path.name
    assert len(document["domains"]) == 2
    for one in document["domains"].values():
        assert one["swap_s"] > 0
        assert one["latency"]["median_ms"] > 0
        assert "selftest" in one["seconds"]
    assert set(document["parity"]) == {bundle.stem for bundle in bundles}
    for one in document["parity"].values():
        assert one["cases"] > 0
        assert one["error"] < 1e-3
        assert (one["classes"], one["gates"]) == (0, 0)
    assert set(document["switch"]) == {"same", "switching"}
    assert document["memory_bytes"]["engine"] > 0
    assert document["memory_bytes"]["domains"] > 0
    assert document["skipping"]["verdict"] in ("skipping", "not skipping")


def test_one_domain_has_nothing_to_switch_to(
    device: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    path = deploy(fleet["first"], tmp_path, device, flavour="staged")
    document = measure(path, [fleet["first"].bundle], rounds=1, device=device)
    assert document["switch"] is None


def test_a_static_engine_has_no_gate_to_force(
    device: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    path = deploy(fleet["first"], tmp_path, device, flavour="static")
    document = measure(path, [fleet["first"].bundle], rounds=1, device=device)
    assert document["skipping"] is None
    assert open_engine(path).manifest.gates == "unproven"


def test_without_a_bundle_there_is_nothing_to_run(
    device: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="bundle"):
        measure(deploy(fleet["first"], tmp_path, device), [], device=device)
