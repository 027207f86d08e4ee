"""A runner follows a store: domains and backbones are exchanged, and no request notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.support.drawn import tensor
from tests.support.exported import Fleet
from tests.support.waiting import until
from toolchain import bundle
from toolchain.core.errors import Da3Error, StoreError
from toolchain.device import Outcome, Runner
from toolchain.device.runtime import watch
from toolchain.device.store import current
from toolchain.device.store.store import Store

IMAGE = tensor(1, 3)
TOY = "backbones/toy"


class Told(list[tuple[str, Da3Error | None]]):
    """What a watch told."""

    def __call__(self, name: str, err: Da3Error | None) -> None:
        self.append((name, err))


def installed(store: Store, fleet: Fleet, name: str, counter: int = 1) -> dict[str, str]:
    """Install a domain of the fleet and its backbone; return the digest of each, by its unit."""
    opened = bundle.open_bundle(fleet[name].bundle)
    with store.writing() as writer:
        folder = writer.add_backbone(TOY, counter, fleet[name].backbone, signed=True)
        writer.add_release(unit(fleet, name), 1, opened, "", signed=True)
    return {TOY: f"sha256:{folder.name}", unit(fleet, name): opened.manifest_digest}


def unit(fleet: Fleet, name: str) -> str:
    return f"domains/{called(fleet, name)}"


def called(fleet: Fleet, name: str) -> str:
    """What a domain of the fleet is called in its bundle."""
    return bundle.open_bundle(fleet[name].bundle).manifest.domain


def add_domain(store: Store, fleet: Fleet, name: str) -> str:
    """Install a domain on the backbone that runs, and activate it; return its name."""
    activate(store, {unit(fleet, name): installed(store, fleet, name)[unit(fleet, name)]})
    return called(fleet, name)


def activate(store: Store, changes: Mapping[str, str | None]) -> None:
    with store.writing() as writer:
        writer.activate(changes)
        writer.commit()


@pytest.fixture
def store(tmp_path: Path, fleet: Fleet) -> Store:
    made = Store.create(tmp_path / "store", root=None)
    activate(made, installed(made, fleet, "first"))
    return made


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def runner(store: Store, told: Told) -> Iterator[Runner]:
    with Runner.watch(store.path, told=told) as made:
        yield made


def releases(runner: Runner) -> dict[str, str]:
    return {name: domain.release for name, domain in runner.domains.items()}


def test_what_is_current_is_loaded_and_followed(
    runner: Runner, store: Store, fleet: Fleet, told: Told
) -> None:
    first = releases(runner)
    digest = bundle.open_bundle(fleet["first"].bundle).manifest_digest
    assert first == {called(fleet, "first"): digest}
    digits = add_domain(store, fleet, "digits")
    until(lambda: len(runner.domains) == 2)
    with store.writing() as writer:
        writer.roll_back(reason="by hand")
    until(lambda: releases(runner) == first)
    assert [name for name, err in told if err is None] == [digits, digits]


def test_a_backbone_comes_with_its_domains_and_requests_go_on(
    runner: Runner, store: Store, fleet: Fleet, told: Told
) -> None:
    """Law: while a generation is exchanged no request fails, and none meets a mixture."""
    stop, answers, faults = threading.Event(), list[Outcome](), list[Exception]()

    def ask() -> None:
        while not stop.is_set():
            try:
                # One domain is loaded at any moment, whatever it is called.
                answers.append(runner.infer(IMAGE))
            except Exception as err:
                faults.append(err)

    changes = installed(store, fleet, "foreign", counter=2)
    before = {one: None for one in store.state().running if one not in changes}
    foreign = called(fleet, "foreign")
    thread = threading.Thread(target=ask)
    thread.start()
    activate(store, {**before, **changes})
    until(lambda: foreign in runner.domains)
    until(lambda: answers[-1].release == changes[f"domains/{foreign}"])
    stop.set()
    thread.join()
    assert not faults
    with Runner(fleet["foreign"].backbone) as other:
        other.load(fleet["foreign"].bundle)
        assert np.array_equal(runner.infer(IMAGE).logits, other.infer(IMAGE).logits)
    assert told == [(foreign, None)]


def test_a_domain_that_cannot_be_loaded_leaves_what_runs(
    runner: Runner, store: Store, fleet: Fleet, told: Told
) -> None:
    # It needs a session of its own, and the runner may hold one.
    wide = add_domain(store, fleet, "wide")
    until(lambda: bool(told))
    name, err = told[0]
    assert (name, type(err).__name__) == (wide, "SessionLimitError")
    assert list(runner.domains) == [called(fleet, "first")]


def test_a_store_without_a_backbone_is_refused(tmp_path: Path) -> None:
    empty = Store.create(tmp_path / "empty", root=None)
    with pytest.raises(StoreError, match="without"):
        Runner.watch(empty.path)


def test_links_that_lead_nowhere_are_told(store: Store, fleet: Fleet) -> None:
    link = store.layout.generation(1) / unit(fleet, "first")
    link.unlink()
    link.symlink_to("../nowhere")
    with pytest.raises(StoreError, match="leads nowhere"):
        current.read_running(store.path)


def test_it_polls_where_the_kernel_does_not_tell(
    store: Store, fleet: Fleet, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current, "_inotify", lambda _: None)
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    with Runner.watch(store.path, told=told) as runner:
        digits = add_domain(store, fleet, "digits")
        until(lambda: digits in runner.domains)


def test_a_closed_runner_follows_no_longer(store: Store, fleet: Fleet, told: Told) -> None:
    with Runner.watch(store.path, told=told):
        pass
    add_domain(store, fleet, "digits")
    assert not told
    assert not [one for one in threading.enumerate() if one.name == "da3-watch"]
