"""The agent on a real store, a real site and bundles that run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fielded import PATCHED, SAMPLE, TOY, Fielded, ToyPublisher, fielded, remade
from tests.support.stored import BUNDLES
from toolchain.core.errors import ExpiredError, RepositoryError, RollbackError, UnsignedError
from toolchain.device import Runner
from toolchain.device.agent.agent import Agent, Round
from toolchain.device.agent.plan import Waiting
from toolchain.device.agent.policy import Health, Window
from toolchain.trust import ceremonies


def once(field: Fielded) -> Round:
    agent = Agent(field.device, supplies=Path("/nowhere"))
    agent.start()
    return agent.once()


def test_an_empty_device_comes_to_its_first_domain(field: Fielded) -> None:
    done = Agent(field.device, supplies=Path("/nowhere")).once()
    assert done.changed == (str(TOY), str(SAMPLE))
    assert not done.failed
    assert not done.waiting
    state = field.store.state()
    assert {one.state for one in state.running.values()} == {"COMMITTED"}
    assert dict(state.floors.releases) == {str(TOY): 1, str(SAMPLE): 1}
    assert state.floors.metadata
    # Nothing of the download is left, and an application finds what runs.
    assert not [*(field.store.path / "part").iterdir()]
    with Runner(field.store.backbone("toy").resolve()) as runner:
        domain = runner.load(field.store.domain("sample"))
    assert domain.release == state.running[str(SAMPLE)].digest
    # It was tested when it was installed, so it is not tested again.
    assert "selftest" not in domain.seconds
    assert once(field).changed == ()


def test_an_update_is_fetched_by_its_new_bytes_alone(
    field: Fielded, publisher: ToyPublisher
) -> None:
    once(field)
    digest = publisher.update("sample", "1.1")
    # Only the manifest differs: no file of the bundle comes again.
    shutil.rmtree(publisher.site / "blobs")
    done = once(field)
    assert done.changed == (str(SAMPLE),)
    assert field.running()[str(SAMPLE)] == digest
    assert field.store.state().floors.releases[str(SAMPLE)] == 2


def test_a_release_that_is_not_well_goes_back_by_itself(
    field: Fielded, publisher: ToyPublisher
) -> None:
    once(field)
    before = field.running()
    bad = publisher.update("sample", "1.1")
    field.policy(health=Health(seconds=0, command=(sys.executable, "-c", "raise SystemExit(3)")))
    done = once(field)
    assert [one.unit for one in done.failed] == [str(SAMPLE)]
    assert field.running() == before
    (failed,) = field.store.state().failed
    assert failed.digest == bad
    assert "ended with 3" in failed.reason
    # It is not tried again, also where the device would be well now.
    field.policy(health=Health(seconds=0))
    assert once(field).waiting == (
        Waiting(str(SAMPLE), "release 2 failed here; a later one will be tried"),
    )
    good = publisher.update("sample", "1.2")
    once(field)
    assert field.running()[str(SAMPLE)] == good


def test_a_release_with_other_answers_is_never_installed(
    field: Fielded, publisher: ToyPublisher
) -> None:
    """Its self-test fails before anything of it runs."""
    once(field)
    before = field.running()
    # The patch of the other domain is left out: its golden answers are others'.
    path = remade(BUNDLES / "sample.da3b", publisher.dist / "sample.da3b", version="9")
    _spoil(path)
    publisher.publish(publisher.sign(path, SAMPLE))
    done = once(field)
    assert [one.unit for one in done.failed] == [str(SAMPLE)]
    assert "golden" in done.failed[0].reason
    assert field.running() == before
    assert any("golden" in str(report.about) for report in field.store.state().reports)
    # It is reported once, however often it is tried.
    once(field)
    about = [dict(report.about)["what"] for report in field.store.state().reports]
    assert about.count("not installed") == 1


def _spoil(path: Path) -> None:
    """Exchange two classes' weights in the head, so that answers differ from the golden ones."""
    import numpy as np
    from safetensors.numpy import load, save

    from toolchain.bundle import Payload, open_bundle, pack

    opened = open_bundle(path)
    payloads = []
    for entry in opened.manifest.files:
        data = opened.blob(entry.name)
        if entry.role == "slots":
            slots = {name: array.copy() for name, array in load(data).items()}
            slots["head.weight"] = np.ascontiguousarray(slots["head.weight"][::-1])
            data = save(slots)
        payloads.append(Payload(entry.role, entry.name, data))
    pack(path, replace(opened.manifest, version="9.1"), payloads, overwrite=True)


def test_a_domain_that_is_not_there_waits(publisher: ToyPublisher, tmp_path: Path) -> None:
    field = fielded(tmp_path / "d", publisher, domains=("sample", "patched", "tulips"))
    done = once(field)
    assert set(done.changed) == {str(TOY), str(SAMPLE), str(PATCHED)}
    assert done.waiting == (Waiting("domains/tulips", "the repository has no release of it"),)


def test_a_backbone_is_exchanged_with_all_its_domains_or_waits(
    publisher: ToyPublisher, tmp_path: Path
) -> None:
    from tests.support.trusted import passphrase

    field = fielded(tmp_path / "d", publisher, domains=("sample", "patched"))
    once(field)
    before = field.running()
    # The same backbone again, under a higher number: another content is not at hand here.
    ceremonies.revoke(publisher.keys, PATCHED, passphrase=passphrase, now=publisher.now)
    publisher.publish()
    done = once(field)
    assert done.changed == ()
    assert "domains/patched" in {one.unit for one in done.waiting}
    # What a revoked key has signed runs on, until somebody takes it off.
    assert field.running() == before


def test_maintenance_hours_are_kept(field: Fielded) -> None:
    # The clock of the tests shows noon.
    field.policy(window=Window(start="02:00", end="04:00", zone="UTC"))
    done = once(field)
    assert done.postponed_s == 14 * 3600
    assert not field.running()
    field.later(hours=14)
    once(field)
    assert str(SAMPLE) in field.running()


def test_a_battery_is_spared(field: Fielded, tmp_path: Path) -> None:
    supply = tmp_path / "power" / "BAT0"
    supply.mkdir(parents=True)
    (supply / "type").write_text("Battery\n")
    agent = Agent(field.device, supplies=supply.parent)
    assert agent.once().postponed_s == field.device.policy.poll_s
    mains = tmp_path / "power" / "AC"
    mains.mkdir()
    (mains / "type").write_text("Mains\n")
    (mains / "online").write_text("1\n")
    assert agent.once().changed


def test_an_old_site_gets_nothing_in(
    field: Fielded, publisher: ToyPublisher, tmp_path: Path
) -> None:
    """Attack: rollback, with the cache lost. The device's own floors remember."""
    shutil.copytree(publisher.site, tmp_path / "old")
    publisher.update("sample", "1.1")
    once(field)
    before = field.running()
    shutil.rmtree(field.store.path / "trust" / "cache")
    field.policy(repository=f"file://{tmp_path / 'old'}")
    with pytest.raises(RollbackError):
        once(field)
    assert field.running() == before


def test_a_frozen_site_is_told_and_reported(field: Fielded) -> None:
    """Attack: indefinite freeze. The same, also where the clock was set back to 1970."""
    once(field)
    field.later(days=400)
    with pytest.raises(ExpiredError):
        once(field)
    with pytest.raises(ExpiredError):
        once(field)
    reasons = [dict(report.about)["what"] for report in field.store.state().reports]
    assert reasons.count("not trusted") == 1


def test_a_network_that_is_not_there_is_no_news(field: Fielded) -> None:
    field.policy(repository="http://127.0.0.1:1/site")
    with pytest.raises(RepositoryError):
        once(field)
    assert not field.store.state().reports


def test_a_trial_that_the_power_cut_off_is_looked_after_at_the_next_start(
    field: Fielded, publisher: ToyPublisher
) -> None:
    once(field)
    publisher.update("sample", "1.1")
    with field.store.writing() as writer:
        from toolchain.device.agent import operations

        trusted = operations.look_at_repository(field.device, writer)
        operations.install(field.device, writer, trusted.releases[str(SAMPLE)], trusted.releases)
        operations.begin(field.device, writer, operations.newest(writer.state, str(SAMPLE)))
    # The process ends here; the next one finds the trial and ends it.
    assert field.store.state().trial is not None
    once(field)
    state = field.store.state()
    assert state.trial is None
    assert state.running[str(SAMPLE)].counter == 2


def test_importing_the_agent_loads_no_framework() -> None:
    program = (
        "import sys, toolchain.device.agent.agent, toolchain.device.agent.by_hand; "
        "print([n for n in ('torch', 'onnx', 'onnxruntime') if n in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ended.stdout.strip() == b"[]"


def test_an_unsigned_file_needs_the_policys_leave_and_is_told_loudly(field: Fielded) -> None:
    from tests.support.stored import BACKBONE
    from toolchain.device.agent import by_hand

    bundle = str(BUNDLES / "sample.da3b")
    with pytest.raises(UnsignedError, match="nobody has signed"):
        by_hand.install(field.device, bundle)
    assert not field.store.state().held
    field.policy(unsigned=True)
    by_hand.install(field.device, str(BACKBONE))
    by_hand.install(field.device, bundle)
    by_hand.activate(field.device, "sample")
    assert sum(line.startswith("WARNING") for line in field.told) == 2
    assert not field.store.state().running[str(SAMPLE)].signed
