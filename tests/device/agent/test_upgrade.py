"""A new backbone with all its domains in one step: forward, back, and with the power cut between.

Law: at any moment what is current is wholly the old generation or wholly the new one.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.exported import Fleet
from tests.support.fielded import TOY, Fielded, fielded, remade, reopened
from tests.support.trusted import Publisher, passphrase
from toolchain.bundle import open_bundle
from toolchain.core.units import Unit
from toolchain.device.agent import by_hand
from toolchain.device.agent.agent import Agent, Round
from toolchain.device.agent.policy import Health
from toolchain.device.store.current import read_running
from toolchain.trust import ceremonies

CHIRPS = Unit(kind="domains", name="toy_chirps")
DIGITS = Unit(kind="domains", name="toy_digits")
WELL, ILL = ((sys.executable, "-S", "-c", f"raise SystemExit({code})") for code in (0, 1))


@pytest.fixture(scope="module")
def made(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A publisher whose newest releases are on another backbone, and a device on the old one."""
    home = tmp_path_factory.mktemp("upgrade") / "made"
    publisher = Publisher(home / "publisher")
    publisher.dist.mkdir(parents=True)
    ceremonies.init(
        publisher.keys,
        domains=[CHIRPS.name, DIGITS.name],
        backbones=[TOY.name],
        passphrase=passphrase,
        now=publisher.now,
    )
    release(publisher, fleet, {CHIRPS: "first", DIGITS: "digits"})
    field = fielded(home / "device", publisher, domains=(CHIRPS.name, DIGITS.name))
    field.policy(health=Health(seconds=0, command=WELL))
    changes = {}
    with field.store.writing() as writer:
        folder = writer.add_backbone(str(TOY), 1, fleet["first"].backbone, signed=True)
        changes[str(TOY)] = f"sha256:{folder.name}"
        for unit in (CHIRPS, DIGITS):
            opened = open_bundle(publisher.dist / f"{unit.name}.da3b")
            writer.add_release(str(unit), 1, opened, "a test", signed=True)
            changes[str(unit)] = opened.manifest_digest
        writer.activate(changes)
        writer.commit()
    release(publisher, fleet, {CHIRPS: "foreign", DIGITS: "foreign"})
    return home


def release(publisher: Publisher, fleet: Fleet, domains: dict[Unit, str]) -> None:
    """Publish domains of the fleet under the names of units, and the backbone of theirs."""
    backbone = fleet[next(iter(domains.values()))].backbone
    folder = publisher.dist / backbone.name
    shutil.copytree(backbone, folder)
    signed = [publisher.sign(folder, TOY)]
    for unit, name in domains.items():
        path = publisher.dist / f"{unit.name}.da3b"
        remade(fleet[name].bundle, path, domain=unit.name)
        signed.append(publisher.sign(path, unit))
    publisher.publish(*signed)


@pytest.fixture
def field(made: Path, tmp_path: Path) -> Fielded:
    """A copy of the device; the site is not changed."""
    shutil.copytree(made / "device", tmp_path / "device", symlinks=True)
    return reopened(tmp_path / "device", Publisher(made / "publisher"))


def once(field: Fielded) -> Round:
    agent = Agent(field.device, supplies=Path("/nowhere"))
    agent.start()
    return agent.once()


def is_whole(field: Fielded) -> bool:
    """Whether what is current is one generation; returns whether it is the new one."""
    running = read_running(field.store.path)
    assert running.backbone is not None
    assert set(running.domains) == {CHIRPS.name, DIGITS.name}
    needed = {
        open_bundle(folder / "bundle.da3b").manifest.backbone.graph_digest
        for folder in running.domains.values()
    }
    state = field.store.state()
    (backbone,) = (
        one.fits
        for one in state.held
        if one.unit == str(TOY) and one.digest == f"sha256:{running.backbone.name}"
    )
    assert backbone is not None
    assert needed == {backbone.graph_digest}
    return running.link != "gen/1"


def test_a_backbone_comes_with_its_domains_in_one_step_and_goes_back_with_them(
    field: Fielded,
) -> None:
    before = field.running()
    assert not is_whole(field)
    done = once(field)
    assert set(done.changed) == {str(TOY), str(CHIRPS), str(DIGITS)}
    assert field.store.state().last == 2
    assert is_whole(field)
    after = field.running()
    assert not set(before.values()) & set(after.values())
    assert dict(field.store.state().floors.releases) == dict.fromkeys(before, 2)
    # Back by hand: all three, in one step, and the agent does not take them again.
    assert set(by_hand.roll_back(field.device)) == set(before)
    assert field.running() == before
    assert not is_whole(field)
    done = once(field)
    assert not done.changed
    assert {one.unit for one in done.waiting} >= {str(CHIRPS), str(DIGITS)}
    assert field.running() == before
    assert field.store.verify().ok


def test_a_new_backbone_that_is_not_well_takes_all_back(field: Fielded) -> None:
    before = field.running()
    field.policy(health=Health(seconds=0, command=ILL))
    done = once(field)
    assert len(done.failed) == 1
    assert field.running() == before
    assert not is_whole(field)
    assert {one.unit for one in field.store.state().failed} == set(before)
    assert dict(field.store.state().floors.releases) == dict.fromkeys(before, 1)
    assert field.store.verify().ok


POINTS = {
    "before its backbone comes": "backbones/toy: release 2",
    "with its backbone installed": "backbones/toy: installed",
    "in the middle of a test": "toy_chirps: self-test",
    "with one of two domains installed": "domains/toy_chirps: installed",
    "with all domains installed": "domains/toy_digits: installed",
    "while it is tried": "runs on trial",
    "just after it was kept": "well, so it stays",
}
SHORT = ("with one of two domains installed", "while it is tried")
PROGRAM = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from tests.support.fielded import reopened
from tests.support.trusted import Publisher
from toolchain.device.agent.agent import Agent

def told(text):
    if sys.argv[3] in text:
        os.kill(os.getpid(), signal.SIGKILL)

field = reopened(Path(sys.argv[1]), Publisher(Path(sys.argv[2])))
Agent(replace(field.device, told=told), supplies=Path("/nowhere")).once()
"""


@pytest.mark.parametrize(
    "point", [one if one in SHORT else pytest.param(one, marks=pytest.mark.full) for one in POINTS]
)
def test_a_power_cut_between_its_steps(point: str, field: Fielded, made: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, str(field.store.path), str(made / "publisher")]
    ended = subprocess.run([*words, POINTS[point]], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert is_whole(field) == (point in {"while it is tried", "just after it was kept"})
    done = once(field)
    assert not done.failed
    assert is_whole(field)
    state = field.store.state()
    assert state.trial is None
    assert {one.counter for one in state.running.values()} == {2}
    assert field.store.verify().ok
