"""Setups that cannot be meant, parts in processes of their own, and the document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toolchain.bench import child, run
from toolchain.bench.materials import Materials
from toolchain.core.errors import RunError, UnknownNameError, UsageError


@pytest.mark.parametrize(
    "setup",
    [
        run.BenchSetup(),
        run.BenchSetup(backbone="resnet20", bundles=(Path("a.da3b"), Path("b.da3b"))),
        run.BenchSetup(backbone="resnet20", domains=1),
        run.BenchSetup(bundles=(Path("a.da3b"),)),
    ],
)
def test_setups_that_cannot_be_meant(setup: run.BenchSetup) -> None:
    with pytest.raises(UsageError):
        run.measure(setup)


def test_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="latency"):
        run.measure(run.BenchSetup(backbone="resnet20", parts=("latencies",)))
    with pytest.raises(UnknownNameError, match="resnet20"):
        run.measure(run.BenchSetup(backbone="resnet21"))


def test_the_document_says_what_it_is(document: dict[str, Any]) -> None:
    assert document["schema"] == run.SCHEMA
    assert list(document["parts"]) == list(run.PARTS)
    assert document["not_measured"] == {}
    assert document["settings"]["drawn"] is True
    assert set(document["took_s"]) == {"domains", *run.PARTS}


def test_bundles_alone_say_what_is_missing(materials: Materials) -> None:
    setup = run.BenchSetup(bundles=materials.bundles, parts=("latency", "switch"), rounds=run.QUICK)
    document = run.measure(setup)
    assert set(document["parts"]) == {"latency", "switch"}
    assert document["settings"]["drawn"] is False
    assert document["not_measured"]["swap"] == "was not asked for"
    (why,) = {v for k, v in document["not_measured"].items() if k.startswith("latency")}
    assert "--backbone" in why


def test_an_error_of_the_child_is_told(tmp_path: Path) -> None:
    setup = {"backbone": "resnet21", "side": 32, "domains": 2, "classes": 2}
    with pytest.raises(RunError, match="resnet21"):
        child.run("domains", {"work": str(tmp_path), "setup": setup})


def test_a_child_that_dies_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="ended with code 1"):
        child.run("domains", {})


def test_only_parts_can_be_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toolchain.bench.child", "os"],
        input=b"{}",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"expected one of domains" in done.stderr
