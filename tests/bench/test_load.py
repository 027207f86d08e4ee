"""Requests under swaps: right answers are told from wrong ones, and swaps are counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain import bundle
from toolchain.bench.load import pairs_of
from toolchain.bench.materials import Materials
from toolchain.bench.run import QUICK
from toolchain.bench.traffic import Known, Traffic, is_known, known_answers
from toolchain.bench.ways import Ways
from toolchain.bundle import Payload
from toolchain.core.errors import UsageError


@pytest.fixture(scope="module")
def known(materials: Materials) -> Known:
    with Ways(materials, threads=1) as ways:
        return known_answers(ways.runner, materials.bundles, ways.image())


def test_nothing_fails_and_nothing_is_mixed(document: dict[str, Any]) -> None:
    part = document["parts"]["load"]
    assert (part["failed"], part["mixed"], part["first_failure"]) == (0, 0, "")
    rows = part["rows"]
    assert list(rows) == ["installed, no pause", "installed", "bundle"]
    assert rows["installed"]["swaps"] == QUICK.load.swaps
    assert rows["bundle"]["swaps"] == QUICK.load.bundle_swaps
    assert rows["installed, no pause"]["swaps"] > 0
    for row in rows.values():
        assert row["answers"] > 0
        assert len(row["slices"]["with"]) == len(row["slices"]["without"])


def test_an_answer_of_its_release_is_known(known: Known) -> None:
    assert len(known) == 4
    assert all(is_known(answer, known) for answer in known.values())


def test_an_answer_under_another_release_is_mixed(known: Known) -> None:
    one, other, *_ = known.values()
    assert not is_known(dataclasses.replace(one, release=other.release), known)
    assert not is_known(dataclasses.replace(one, release="sha256:" + "0" * 64), known)


def test_a_head_of_one_with_the_gates_of_another_is_mixed(known: Known) -> None:
    one = next(iter(known.values()))
    assert not is_known(dataclasses.replace(one, gates=~one.gates), known)
    mean = np.mean([answer.logits for answer in known.values()], axis=0)
    assert not is_known(dataclasses.replace(one, logits=mean), known)


def test_twins_cannot_be_told_apart(materials: Materials, tmp_path: Path) -> None:
    package = materials.open()
    files = [Payload(e.role, e.name, package.blob(e.name)) for e in package.manifest.files]
    bundle.pack(tmp_path / "twin.da3b", dataclasses.replace(package.manifest, domain="twin"), files)
    with Ways(materials, threads=1) as ways:
        sources = [materials.bundles[0], tmp_path / "twin.da3b"]
        with pytest.raises(UsageError, match="nearly alike"):
            known_answers(ways.runner, sources, ways.image())


def test_a_request_that_raises_is_a_failure(materials: Materials, known: Known) -> None:
    with Ways(materials, threads=1) as ways:
        with Traffic(ways.runner, ["nobody"], ways.image(), known, clients=2) as traffic:
            while traffic.counts().answers < 10:
                pass
        counts = traffic.counts()
    assert counts.failed == counts.answers
    assert "nobody" in traffic.first_failure


def test_a_single_pair_serves_two_names() -> None:
    one, other, spare = Path("a"), Path("b"), Path("c")
    assert pairs_of([one, other, spare]) == [(one, other), (one, other)]


@given(st.lists(st.integers(), unique=True, min_size=4, max_size=20))
def test_pairs_take_each_source_once(sources: list[Any]) -> None:
    pairs = pairs_of(sources)
    used = [source for pair in pairs for source in pair]
    assert len(used) == len(set(used)) == len(sources) // 2 * 2
