"""What a heavy request costs others, at toy size: it runs and counts; nothing looks at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import results, stall
from tests.support.exported import Fleet, search_path
from toolchain.device.serve import Limits
from toolchain.device.serve.protocol import read_json


def test_every_load_is_sent_and_both_clients_are_answered(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in search_path().items():
        monkeypatch.setenv(name, value)
    bundles = [tmp_path / "one.da3b", tmp_path / "other.da3b"]
    for path in bundles:
        shutil.copy(fleet["first"].bundle, path)
    setup = stall.StallSetup(rounds=1, seconds=0.02, clients=1, json_bytes=1 << 14)
    document = stall.measure(fleet["first"].backbone, bundles, 12, setup)
    document = json.loads(json.dumps(document))
    assert list(document["rows"]) == list(stall.loads("a", "b", 12, 1 << 14))
    for kind, row in document["rows"].items():
        assert bool(row["sent"]) == (kind != stall.QUIET)
        assert row["failed"] == 0
        assert row["health"]["count"] > 0
        assert row["answers"]["count"] > 0
    text = "\n".join(results.stall(document))
    assert all(kind in text for kind in document["rows"])


def test_the_loads_are_as_large_as_a_server_lets_them_be() -> None:
    """One is answered; the others are within the limit on bytes, or twice as large."""
    limit = Limits().json_bytes
    bodies = {kind: load[2] for kind, load in stall.loads("a", "b", 4).items() if load}
    sizes = {kind: len(body) for kind, body in bodies.items() if f", {limit >> 20} MiB" in kind}
    assert len(sizes) == 3
    assert all(limit - 100 < size <= limit for size in sizes.values())
    (numbers,) = (body for kind, body in bodies.items() if kind.startswith("64 pictures"))
    assert read_json(numbers, limit)["inputs"][0]["shape"] == [64, 3, 4, 4]


def test_figures_tell_the_spread_and_what_was_late() -> None:
    got = stall.figures([[1.0, 2.0, 3.0], [5.0, 6.0, 900.0]])
    assert (got["median_ms"], got["largest_ms"], got["late"], got["count"]) == (4.0, 900.0, 1, 6)
    assert got["quartiles_ms"][0] < got["median_ms"] < got["quartiles_ms"][1]
    assert stall.figures([[2.0]])["quartiles_ms"] == (2.0, 2.0)
