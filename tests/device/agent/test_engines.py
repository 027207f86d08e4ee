"""A board builds the engine of a backbone's kit once, before the backbone runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.boards import orin
from tests.support.fielded import Fielded, fielded
from tests.support.kitted import Kitted
from tests.support.trusted import NOW, Publisher, passphrase
from toolchain.core.errors import BuildError
from toolchain.core.units import Unit
from toolchain.device.agent.agent import Agent
from toolchain.device.agent.engines import kit_for
from toolchain.device.boards.machine import Machine, read_machine
from toolchain.device.engine.cache import EngineStore
from toolchain.device.engine.kit import open_kit
from toolchain.device.store.current import read_running
from toolchain.trust import ceremonies

TOY = Unit("backbones", "toy")


@pytest.fixture
def board(tmp_path: Path) -> Machine:
    """An Orin Nano, as far as files tell."""
    return read_machine(orin(tmp_path / "root"))


@pytest.fixture
def field(kitted: Kitted, tmp_path: Path, board: Machine) -> Fielded:
    """A board that wants a domain whose backbone comes with a kit for it."""
    publisher = Publisher(tmp_path / "home", NOW)
    publisher.dist.mkdir(parents=True)
    domain = kitted.exported.report.manifest.domain
    ceremonies.init(
        publisher.keys, domains=[domain], backbones=["toy"], passphrase=passphrase, now=NOW
    )
    for source in (kitted.exported.backbone, kitted.kits["orin fp16"].path):
        shutil.copytree(source, publisher.dist / source.name)
    backbone = publisher.dist / kitted.exported.backbone.name
    bundle = Path(shutil.copy(kitted.exported.bundle, publisher.dist))
    kit = open_kit(publisher.dist / kitted.kits["orin fp16"].path.name)
    publisher.publish(
        publisher.sign(backbone, TOY, kits=[kit]), publisher.sign(bundle, Unit("domains", domain))
    )
    made = fielded(tmp_path / "device", publisher, domains=(domain,))
    made.device = replace(made.device, machine=lambda: board)
    return made


def test_a_backbone_whose_engine_cannot_be_built_does_not_run(field: Fielded) -> None:
    """There is no GPU here, so `da3 build` fails for real, and says why."""
    done = Agent(field.device, supplies=Path("/nowhere")).once()
    (failed,) = done.failed
    assert "kit-orin-nano-jp6.2" in failed.reason
    assert not field.running()
    state = field.store.state()
    (backbone,) = (one for one in state.held if one.unit == str(TOY))
    folder = field.store.layout.engines(backbone.digest)
    assert open_kit(folder / "kit-orin-nano-jp6.2").manifest.target == "orin-nano-jp6.2"
    assert not EngineStore(folder).folders()
    assert not [*(field.store.path / "part").iterdir()]
    # The next round goes on from there: nothing is fetched again.
    field.policy(repository=field.device.policy.repository)
    shutil.rmtree(Path(str(field.device.policy.repository).removeprefix("file://")) / "blobs")
    with pytest.raises(BuildError, match="kit-orin"):
        from toolchain.device.agent import operations

        with field.store.writing() as writer:
            trusted = operations.look_at_repository(field.device, writer)
        operations.build_engines(field.device, [*trusted.releases.values()])


def test_another_machine_needs_no_kit(field: Fielded) -> None:
    plain = read_machine(Path("/nowhere"))
    field.device = replace(field.device, machine=lambda: plain)
    done = Agent(field.device, supplies=Path("/nowhere")).once()
    assert not done.failed
    running = read_running(field.store.path)
    assert running.backbone is not None
    assert running.backbone.parent.name == "backbones"
    assert not [*(field.store.path / "engines").iterdir()]


def test_an_engine_that_is_there_is_what_runs(field: Fielded, board: Machine) -> None:
    """Its content is for the runner to judge; here it is only found, and nothing is built."""
    plain = read_machine(Path("/nowhere"))
    field.device = replace(field.device, machine=lambda: plain)
    Agent(field.device, supplies=Path("/nowhere")).once()
    (backbone,) = (one for one in field.store.state().held if one.unit == str(TOY))
    engine = field.store.layout.engines(backbone.digest) / "engine-toy"
    engine.mkdir(parents=True)
    (engine / "engine.json").write_text("{}")
    assert read_running(field.store.path).backbone == engine
    field.device = replace(field.device, machine=lambda: board)
    assert not Agent(field.device, supplies=Path("/nowhere")).once().failed
    # It goes with its backbone and not before.
    with field.store.writing() as writer:
        writer.gc()
    assert EngineStore(engine.parent).folders() == [engine]


def test_only_a_kit_of_this_board_counts(field: Fielded, board: Machine) -> None:
    from toolchain.device.agent import operations

    with field.store.writing() as writer:
        trusted = operations.look_at_repository(field.device, writer)
    release = trusted.releases[str(TOY)]
    kit = kit_for(release, board)
    assert kit is not None
    assert kit.name == "kit-orin-nano-jp6.2.json"
    assert kit_for(replace(release, files=release.files[:1]), board) is None
