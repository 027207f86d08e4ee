"""The proof that closed gates skip, on a device in memory; no figure is tested."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.exported import Fleet
from tests.support.simulated.engines import deploy, digest_of, given_back, simulated
from toolchain.device.engine.cache import open_engine
from toolchain.device.runtime.trt.plan import TrtDevice
from toolchain.device.runtime.trt.proof import prove


@pytest.fixture
def device() -> Iterator[TrtDevice]:
    yield from given_back(simulated())


def test_the_verdict_is_written_into_the_engine(
    device: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    path = deploy(fleet["first"], tmp_path, device)
    plans = {name: digest for name, digest in digest_of(path).items() if name != "engine.json"}
    assert open_engine(path).manifest.gates == "unproven"
    proof = prove(open_engine(path), device, rounds=2)
    assert proof is not None
    written = open_engine(path).manifest
    assert written.gates == proof.verdict
    assert written.figures["open_ms"] == proof.open_ms
    after = {name: digest for name, digest in digest_of(path).items() if name != "engine.json"}
    assert after == plans
