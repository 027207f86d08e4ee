"""Two agents, or an agent and a hand, at one store: one wins, the other says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.support import stored
from tests.support.fielded import SAMPLE, Fielded, ToyPublisher, fielded
from tests.support.mirror import serving
from tests.support.stored import PATCHED, TOY
from tests.support.stored import SAMPLE as STORED
from tests.support.waiting import until
from toolchain.core.errors import LockedError
from toolchain.device.agent import by_hand
from toolchain.device.agent.agent import Agent
from toolchain.device.agent.policy import Health
from toolchain.device.store.store import Store


def da3(store: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "toolchain", "device", *words, "--store", str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_agents_and_a_hand_one_wins_and_the_others_say_so(
    publisher: ToyPublisher, tmp_path: Path
) -> None:
    """In processes, as they are started on a device; the link is slow, so that they meet."""
    publisher.now = datetime.now(timezone.utc).replace(microsecond=0)
    publisher.publish()
    with serving(publisher.site) as (url, link):
        field = fielded(tmp_path / "device", publisher, url, domains=("sample",))
        link.only, link.piece, link.pause_s = "/blobs/", 100, 0.05
        first = da3(field.store.path, "agent", "--once", "--json")
        until(lambda: any("/blobs/" in path for path in link.asked))
        for words in (("agent", "--once"), ("install", "sample")):
            other = da3(field.store.path, *words)
            _, said = other.communicate(timeout=120)
            assert other.returncode == LockedError.exit_code
            assert f"got another one at work there: process {first.pid} on" in said
        link.pause_s = 0
        out, said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert str(SAMPLE) in json.loads(out)["round"]["changed"]
    assert str(SAMPLE) in field.running()
    assert field.store.verify().ok


def test_an_agent_that_finds_somebody_at_work_says_so_and_comes_again(running: Fielded) -> None:
    before = running.running()
    agent = Agent(running.device, supplies=Path("/nowhere"))
    with running.store.writing() as writer:
        for act in (agent.start, agent.once, lambda: by_hand.roll_back(running.device)):
            with pytest.raises(LockedError, match=f"process {os.getpid()} on"):
                act()
        writer.report({"still": "mine"})
    assert agent.once().changed == ()
    assert running.running() == before


def test_a_hand_that_ends_a_trial_first_wins(running: Fielded, publisher: ToyPublisher) -> None:
    """While a trial is looked at nobody holds the store; who takes it back need not wait a day."""
    before = running.running()
    publisher.update("sample", "1.1")
    running.policy(health=Health(seconds=86400, every_s=0.1, command=("true",)))
    running.device = replace(running.device, wait=time.sleep)
    done = []
    agent = threading.Thread(
        target=lambda: done.append(Agent(running.device, supplies=Path("/nowhere")).once())
    )
    agent.start()
    until(lambda: running.store.state().trial is not None)
    until(lambda: _taken_back(running))
    agent.join()
    assert running.running() == before
    assert [one.unit for one in done[0].failed] == [str(SAMPLE)]
    assert any("ended by somebody else" in line for line in running.told)
    # What a hand has taken back is not tried again.
    (waiting,) = Agent(running.device, supplies=Path("/nowhere")).once().waiting
    assert "failed here" in waiting.reason
    assert running.store.verify().ok


def _taken_back(field: Fielded) -> bool:
    try:
        return bool(by_hand.roll_back(field.device))
    except LockedError:
        return False


PROGRAM = """
import random, sys
from tests.support.stored import PATCHED, SAMPLE, TOY, add
from toolchain.core.errors import Da3Error, LockedError
from toolchain.device.store.store import Store

store, drawn = Store.open(sys.argv[1]), random.Random(int(sys.argv[2]))
done = locked = 0
while done < int(sys.argv[3]):
    try:
        with store.writing() as writer:
            act = drawn.randrange(7)
            digests = {one.unit: one.digest for one in writer.state.held}
            try:
                if act == 0: add(writer, PATCHED)
                elif act == 1: writer.activate({PATCHED: digests.get(PATCHED)})
                elif act == 2: writer.activate({PATCHED: None})
                elif act == 3: writer.commit()
                elif act == 4: writer.roll_back(reason="by hand")
                elif act == 5: writer.gc()
                else: writer.report({"who": sys.argv[2]})
            except LockedError: raise
            except Da3Error: pass
        done += 1
    except LockedError:
        locked += 1
print(done, locked)
"""


@pytest.mark.parametrize("steps", [40, pytest.param(1000, marks=pytest.mark.full)])
def test_three_processes_at_one_store_leave_it_whole(steps: int, tmp_path: Path) -> None:
    """Whatever each does, and whoever is refused: links, bytes and journal are whole."""
    store = stored.create(tmp_path / "store")
    with store.writing() as writer:
        stored.run(writer, TOY, STORED)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(store.path), str(seed), str(steps)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    while any(process.poll() is None for process in processes):
        # A reader takes no lock and always finds the domain that nobody takes off.
        assert (store.domain("sample") / "bundle.da3b").is_file()
        store.state()
    told = [process.communicate()[0].split() for process in processes]
    assert [int(done) for done, _ in told] == [steps] * 3
    assert sum(int(locked) for _, locked in told) > 0
    assert Store.open(store.path).verify().ok
    assert store.history()
    assert STORED in store.state().running
    assert set(store.state().running) <= {TOY, STORED, PATCHED}
