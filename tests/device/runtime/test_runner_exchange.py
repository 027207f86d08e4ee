"""A backbone is exchanged with all its domains at once, and no request notices."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest

from tests.support.drawn import tensor
from tests.support.exported import Fleet
from toolchain import bundle
from toolchain.core.errors import (
    BackboneMismatchError,
    ClosedError,
    RunError,
    UnknownNameError,
)
from toolchain.device import Outcome, Runner
from toolchain.device.runtime.open_backbone import open_backbone

IMAGE = tensor(1, 3)


def test_the_new_domains_are_there_and_the_old_ones_are_gone(runner: Runner, fleet: Fleet) -> None:
    runner.load(fleet["first"].bundle, name="one")
    runner.load(fleet["digits"].bundle, name="two")
    session = weakref.ref(runner._open.table["one"].session.backend)
    foreign = fleet["foreign"]
    domains = runner.exchange(foreign.backbone, {"one": foreign.bundle})
    assert list(domains) == list(runner.domains) == ["one"]
    needed = bundle.open_bundle(foreign.bundle).manifest.backbone
    assert runner.facts.backbone.graph_digest == needed.graph_digest
    with Runner(foreign.backbone) as other:
        other.load(foreign.bundle, name="one")
        expected = other.infer(IMAGE).logits
    assert (runner.infer(IMAGE, "one").logits == expected).all()
    with pytest.raises(UnknownNameError):
        runner.infer(IMAGE, "two")
    gc.collect()
    assert session() is None, "the old session is still in memory"


def test_a_domain_of_the_old_backbone_changes_nothing(runner: Runner, fleet: Fleet) -> None:
    loaded = runner.load(fleet["first"].bundle, name="one")
    sources = {"new": fleet["foreign"].bundle, "one": fleet["first"].bundle}
    with pytest.raises(BackboneMismatchError):
        runner.exchange(fleet["foreign"].backbone, sources)
    assert runner.domains == {"one": loaded}
    assert runner.infer(IMAGE).release == loaded.release


def test_requests_under_way_see_one_backbone_or_the_other(
    runner: Runner, artefact: Path, fleet: Fleet
) -> None:
    """Law: no request fails or mixes while the backbone is exchanged to and fro."""
    pairs = [
        (artefact, fleet["first"].bundle),
        (fleet["foreign"].backbone, fleet["foreign"].bundle),
    ]
    expected = {}
    for backbone, source in pairs:
        runner.exchange(backbone, {"one": source})
        outcome = runner.infer(IMAGE)
        expected[outcome.release] = outcome.logits
    stop, answers, faults = threading.Event(), list[Outcome](), list[Exception]()

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(runner.infer(IMAGE, "one"))
            except Exception as err:
                faults.append(err)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for backbone, source in pairs * 4:
        runner.exchange(backbone, {"one": source})
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert len(expected) == 2
    assert {answer.release for answer in answers} == set(expected)
    assert all((answer.logits == expected[answer.release]).all() for answer in answers)


def test_what_is_loaded_on_a_backbone_that_was_left_is_refused(
    runner: Runner, fleet: Fleet
) -> None:
    """A load that began before the exchange may end after it."""
    left = runner._open
    runner.exchange(fleet["foreign"].backbone, {})
    with pytest.raises(RunError, match="exchanged"):
        runner._load(left, fleet["first"].bundle, None, selftest=False, replacing=False)
    assert not runner.domains


def test_a_closed_runner_takes_no_backbone(artefact: Path) -> None:
    runner = Runner(artefact)
    runner.close()
    with pytest.raises(ClosedError):
        runner.exchange(artefact, {})


def test_opening_a_backbone_loads_nothing(artefact: Path, runner: Runner) -> None:
    assert not open_backbone(artefact, runner._options).table
