"""Updates under load: a store exchanges releases while threads ask a runner that follows it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.drawn import tensor
from tests.support.exported import Fleet
from tests.support.waiting import until
from toolchain.bundle import open_bundle
from toolchain.core.errors import Da3Error
from toolchain.device import Runner
from toolchain.device.store.store import Store

IMAGES = tensor(2, 5)
UNIT, TOY, THREADS = "domains/toy_chirps", "backbones/toy", 4


@pytest.fixture
def store(fleet: Fleet, tmp_path: Path) -> Store:
    """Two releases of one domain are installed, with other answers each; one runs."""
    made = Store.create(tmp_path / "store", root=None)
    with made.writing() as writer:
        backbone = writer.add_backbone(TOY, 1, fleet["first"].backbone, signed=True)
        for counter, name in enumerate(("first", "next"), 1):
            opened = open_bundle(fleet[name].bundle)
            folder = writer.add_release(UNIT, counter, opened, "", signed=True)
        writer.activate({TOY: f"sha256:{backbone.name}", UNIT: f"sha256:{folder.name}"})
        writer.commit()
    return made


def answers(fleet: Fleet) -> dict[str, bytes]:
    """What each release answers, by its digest."""
    found = {}
    for name in ("first", "next"):
        with Runner(fleet[name].backbone) as runner:
            domain = runner.load(fleet[name].bundle)
            found[domain.release] = answer(runner)
    assert len(set(found.values())) == 2
    return found


def answer(runner: Runner) -> bytes:
    output = runner.infer(IMAGES, "toy_chirps")
    return output.logits.tobytes() + output.gates.tobytes()


@pytest.mark.parametrize("updates", [30, pytest.param(1000, marks=pytest.mark.full)])
def test_no_request_fails_and_no_answer_is_mixed(updates: int, store: Store, fleet: Fleet) -> None:
    known = answers(fleet)
    releases = [open_bundle(fleet[name].bundle) for name in ("first", "next")]
    over, told = threading.Event(), list[Da3Error]()

    def ask(runner: Runner) -> tuple[int, int, set[str]]:
        """Return how many were asked, how many answers no release gives, and which were seen."""
        asked, mixed, seen = 0, 0, set()
        while not over.is_set():
            output = runner.infer(IMAGES, "toy_chirps")
            mixed += known[output.release] != output.logits.tobytes() + output.gates.tobytes()
            seen.add(output.release)
            asked += 1
            time.sleep(0.001)
        return asked, mixed, seen

    def note(_: str, err: Da3Error | None) -> None:
        if err is not None:
            told.append(err)

    with Runner.watch(store.path, told=note) as runner, ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(ask, runner) for _ in range(THREADS)]
        try:
            for at in range(updates):
                opened = releases[at % 2]
                digest = opened.manifest_digest
                with store.writing() as writer:
                    # Older content under a higher number, as a fleet goes back.
                    writer.add_release(UNIT, 3 + at, opened, "", signed=True)
                    writer.activate({UNIT: digest})
                    writer.commit()
                until(lambda digest=digest: runner.domains["toy_chirps"].release == digest)  # type: ignore[misc]
        finally:
            over.set()
        # A request that failed raises here.
        results = [job.result() for job in jobs]
    assert not told
    assert sum(mixed for _, mixed, _ in results) == 0
    assert all(asked > updates for asked, _, _ in results)
    assert set().union(*(seen for _, _, seen in results)) == set(known)
    assert store.verify().ok
