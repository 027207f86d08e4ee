"""The runner on an engine: the same calls, answers, invariants and errors as on onnxruntime."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import altered
from tests.support.drawn import same, tensor
from tests.support.exported import Fleet
from tests.support.simulated import engines
from tests.support.simulated.cuda import SimulatedCuda
from tests.support.simulated.engines import cuda_of, deploy, digest_of, given_back, simulated
from tests.support.storm import Known, Storm, answer, answer_to_pictures
from toolchain.core.errors import (
    BackboneMismatchError,
    BundleError,
    ClosedError,
    Da3Error,
    DeviceError,
    DeviceMemoryError,
    EngineMismatchError,
    LoadedError,
    SelftestError,
    SessionLimitError,
    StorageError,
    TimeLimitError,
    UsageError,
)
from toolchain.device import Runner
from toolchain.device.boards.cuda import gpus
from toolchain.device.engine.kit import ClassProfile
from toolchain.device.runtime.trt.backend import EngineBackend
from toolchain.device.runtime.trt.buffers import DeviceSlots
from toolchain.device.runtime.trt.plan import TrtDevice
from toolchain.device.store import dist

# By the name that they are loaded under, as in the storm on onnxruntime, without what needs a
# session of its own.
RELEASES = {"toy_chirps": ("first", "next", "third", "digits"), "grey": ("grey",)}


@pytest.fixture(params=engines.KINDS)
def device(request: pytest.FixtureRequest) -> Iterator[TrtDevice]:
    """A device; all of a simulated one's memory is given back in the end."""
    yield from given_back(engines.devices(request.param))


@pytest.fixture
def memory() -> Iterator[TrtDevice]:
    """A simulated device, where a test steers it or looks into it."""
    yield from given_back(simulated())


@contextmanager
def runner_on(device: TrtDevice, fleet: Fleet, folder: Path, **options: Any) -> Iterator[Runner]:
    """A runner on the first domain's engine."""
    with Runner(deploy(fleet["first"], folder, device), device=device, **options) as made:
        yield made


def bound(runner: Runner, name: str) -> DeviceSlots:
    """What a loaded domain occupies on the device."""
    binding = runner._open.table[name].bound.binding
    assert isinstance(binding, DeviceSlots)
    return binding


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["swap", "staged", "static"])
def test_answers_are_those_of_onnxruntime(
    device: TrtDevice, fleet: Fleet, artefact: Path, tmp_path: Path, flavour: str
) -> None:
    """Every domain of the kit's graph, with other class counts too, after its self-test."""
    path = deploy(fleet["first"], tmp_path, device, flavour=flavour)
    with Runner(path, device=device) as runner, Runner(artefact) as plain:
        for name in ("first",) if flavour == "static" else ("first", "digits", "grey", "next"):
            domain = runner.load(fleet[name].bundle, name=name)
            expected_domain = plain.load(fleet[name].bundle, name=name)
            assert replace(domain, seconds={}) == replace(expected_domain, seconds={})
            assert "selftest" in domain.seconds
            images = tensor(9, 3)
            outcome, expected = runner.infer(images, name), plain.infer(images, name)
            assert np.allclose(outcome.logits, expected.logits, atol=1e-3)
            assert same(outcome.gates, expected.gates)
        facts = runner.facts
        assert (facts.provider, facts.flavour, facts.precision) == ("engine", flavour, "fp32")
        assert (facts.sessions, facts.session_limit) == (1, 1)
        assert facts.backbone == plain.facts.backbone


@pytest.mark.parametrize("flavour", ["swap", "staged", "static"])
@pytest.mark.parametrize("host", ["da2", "head", "every", "always", "wide"])
def test_every_method_and_placement_runs_as_an_engine(
    memory: TrtDevice, fleet: Fleet, artefact: Path, tmp_path: Path, host: str, flavour: str
) -> None:
    """Without gates, without adaptors, with a block that is always open, with everything."""
    path = deploy(fleet[host], tmp_path, memory, flavour=flavour)
    plain_flavour: Any = "static" if flavour == "static" else "swap"
    with (
        Runner(path, device=memory) as runner,
        Runner(artefact, flavour=plain_flavour) as plain,
    ):
        runner.load(fleet[host].bundle)
        plain.load(fleet[host].bundle)
        outcome, expected = runner.infer(tensor(5, 2)), plain.infer(tensor(5, 2))
        assert np.allclose(outcome.logits, expected.logits, atol=1e-3)
        assert same(outcome.gates, expected.gates)


def test_a_halved_engine_says_so_and_passes_within_its_allowance(
    device: TrtDevice, fleet: Fleet, artefact: Path, tmp_path: Path
) -> None:
    path = deploy(fleet["first"], tmp_path, device, precision="fp16")
    with Runner(path, device=device) as runner, Runner(artefact) as plain:
        runner.load(fleet["first"].bundle)
        plain.load(fleet["first"].bundle)
        assert runner.facts.precision == "fp16"
        outcome, expected = runner.infer(tensor(6, 3)), plain.infer(tensor(6, 3))
        agree = (outcome.gates == expected.gates).all(axis=1)
        assert agree.any()
        assert np.allclose(outcome.logits[agree], expected.logits[agree], atol=0.05)


def test_a_gate_that_a_static_engine_has_resolved_is_told_as_what_it_is(
    memory: TrtDevice, fleet: Fleet, artefact: Path, tmp_path: Path
) -> None:
    path = deploy(fleet["always"], tmp_path, memory, flavour="static")
    with Runner(path, device=memory) as runner, Runner(artefact, flavour="static") as plain:
        runner.load(fleet["always"].bundle)
        plain.load(fleet["always"].bundle)
        outcome, expected = runner.infer(tensor(4)), plain.infer(tensor(4))
        assert np.allclose(outcome.logits, expected.logits, atol=1e-4)
        assert same(outcome.gates, expected.gates)


def test_a_second_domain_leaves_the_engine_as_it_is(
    device: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    """Its bytes and its handle; loading costs one allocation that stays."""
    path = deploy(fleet["first"], tmp_path, device)
    before = digest_of(path)
    with Runner(path, device=device) as runner:
        runner.load(fleet["first"].bundle, name="one")
        engine = runner._open.table["one"].session
        session = engine._backend
        assert isinstance(session, EngineBackend)
        plan = session._program.last
        handle, free = plan._engine, device.cuda.memory()[0]
        expected = runner.infer(tensor(3), "one")
        two = runner.load(fleet["next"].bundle, name="two")
        runner.infer(tensor(3), "two")
        assert runner._open.table["two"].session is engine
        assert plan._engine is handle
        assert same(runner.infer(tensor(3), "one").logits, expected.logits)
        if isinstance(device.cuda, SimulatedCuda):
            assert free - device.cuda.memory()[0] == bound(runner, "two").nbytes
        assert two.session == 0
        del plan, handle, engine, session
    assert digest_of(path) == before


def test_requests_allocate_nothing(memory: TrtDevice, fleet: Fleet, tmp_path: Path) -> None:
    with runner_on(memory, fleet, tmp_path) as runner:
        for name in ("first", "next", "grey"):
            runner.load(fleet[name].bundle, name=name)
        count = replace(cuda_of(memory).count)
        for name in ("first", "next", "grey", "first"):
            runner.infer(tensor(2), name)
        after = cuda_of(memory).count
        assert (after.allocations, after.pinned, after.streams) == (
            count.allocations,
            count.pinned,
            count.streams,
        )


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("wide", "block00.adaptor"),
        ("every", "no such slot|expected"),
        ("da2", "no such slot|expected"),
        ("coarse", "adaptor option pool: expected 2, got 4"),
        ("head", "block00.adaptor.* got none"),
    ],
)
def test_a_domain_that_does_not_fit_is_refused_by_slot(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path, name: str, told: str
) -> None:
    with runner_on(memory, fleet, tmp_path) as runner:
        with pytest.raises(SessionLimitError, match=told) as caught:
            runner.load(fleet[name].bundle)
        assert "da3 build" in caught.value.fix
        assert runner.domains == {}


@pytest.mark.parametrize("name", ["tuned", "masked"])
def test_a_domain_that_changes_the_backbone_is_refused(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path, name: str
) -> None:
    """The engine holds the frozen backbone; no kit of it could hold another."""
    with runner_on(memory, fleet, tmp_path) as runner:
        with pytest.raises(SessionLimitError, match=r"changes \d+ of 16 tensors") as caught:
            runner.load(fleet[name].bundle)
        assert "da3, da2 or head" in caught.value.fix
        assert runner.domains == {}


def test_a_class_count_outside_the_profile_is_refused_by_both_numbers(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    path = deploy(fleet["first"], tmp_path, memory, classes=ClassProfile(1, 4, 8))
    with Runner(path, device=memory) as runner:
        runner.load(fleet["first"].bundle)
        with pytest.raises(SessionLimitError, match=r"expected 1 to 8, the .*, got 10"):
            runner.load(fleet["digits"].bundle)
        assert list(runner.domains) == ["toy_chirps"]


def test_a_static_engine_is_one_releases_own(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    path = deploy(fleet["first"], tmp_path, memory, flavour="static")
    with Runner(path, device=memory) as runner:
        runner.load(fleet["first"].bundle)
        with pytest.raises(SessionLimitError, match="one domain's own"):
            runner.replace(fleet["next"].bundle)


def test_a_domain_of_another_backbone_is_refused(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    with (
        runner_on(memory, fleet, tmp_path) as runner,
        pytest.raises(BackboneMismatchError, match="weights_digest"),
    ):
        runner.load(fleet["foreign"].bundle)


@pytest.mark.parametrize("part", ["gpu", "sm", "multiprocessors"])
def test_an_engine_of_another_device_is_refused_by_what_differs(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path, part: str
) -> None:
    path = deploy(fleet["first"], tmp_path, memory)
    other, cuda = simulated(), cuda_of(memory)
    changed = {"gpu": {"name": "Orin"}, "sm": {"sm": "7.2"}, "multiprocessors": {part: 3}}[part]
    cuda_of(other).gpu = replace(cuda.gpu, **changed)  # type: ignore[arg-type]
    with pytest.raises(EngineMismatchError, match=rf"\n  {part}: expected .*, got "):
        Runner(path, device=other)


def test_an_engine_of_another_tensorrt_is_refused_by_both_versions(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    path = deploy(fleet["first"], tmp_path, memory)
    with pytest.raises(EngineMismatchError, match=r"tensorrt: expected 10\.13\.0, got 10\.3\.0"):
        Runner(path, device=simulated(build="10.13.0"))


def test_a_changed_bit_of_a_plan_is_found(memory: TrtDevice, fleet: Fleet, tmp_path: Path) -> None:
    path = deploy(fleet["first"], tmp_path, memory)
    (plan,) = path.glob("*.plan")
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with pytest.raises(BundleError, match="expected sha256"):
        Runner(path, device=memory)


def test_a_plan_of_another_domain_under_the_right_digests_fails_the_selftest(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    """Attack: a static engine that holds another release than it says."""
    path = deploy(fleet["first"], tmp_path, memory, flavour="static")
    other = deploy(fleet["next"], tmp_path / "next", memory, flavour="static")
    (mine,), (theirs,) = path.glob("*.plan"), other.glob("*.plan")
    text = (path / "engine.json").read_text()
    entry = digest_of(path)[mine.name], mine.stat().st_size
    shutil.copy(theirs, mine)
    changed = text.replace(entry[0], digest_of(path)[mine.name])
    changed = changed.replace(f'"size":{entry[1]}', f'"size":{mine.stat().st_size}')
    (path / "engine.json").write_text(changed)
    with Runner(path, device=memory) as runner:
        with pytest.raises(SelftestError, match="expected the golden answers"):
            runner.load(fleet["first"].bundle)
        assert runner.domains == {}


@pytest.mark.parametrize(
    "options",
    [{"provider": "cpu"}, {"flavour": "static"}, {"form": "rows"}, {"sessions": 2}],
    ids=str,
)
def test_an_engine_is_not_asked_to_be_something_else(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path, options: Any
) -> None:
    """Never a silent change of device: an explicit cpu is not the engine's GPU."""
    path = deploy(fleet["first"], tmp_path, memory)
    (name,) = options
    with pytest.raises(UsageError, match=name):
        Runner(path, device=memory, **options)
    Runner(path, device=memory, provider="engine").close()


def test_an_artefact_does_not_run_as_an_engine(artefact: Path) -> None:
    with pytest.raises(UsageError, match="for the backbone"):
        Runner(artefact, provider="engine")


def test_a_machine_without_a_gpu_says_what_is_missing(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    if gpus():
        pytest.skip("there is a GPU here")
    with pytest.raises(Da3Error) as caught:
        Runner(deploy(fleet["first"], tmp_path, memory))
    assert caught.value.fix


def test_a_folder_that_is_neither_is_told(tmp_path: Path) -> None:
    with pytest.raises((BundleError, StorageError)):
        Runner(tmp_path)


def test_no_room_for_a_domain_changes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    device = simulated()
    with runner_on(device, fleet, tmp_path) as runner:
        runner.load(fleet["first"].bundle)
        expected = runner.infer(tensor(2))
        cuda = cuda_of(device)
        cuda.total = cuda.used + 100
        with pytest.raises(DeviceMemoryError):
            runner.load(fleet["digits"].bundle)
        with pytest.raises(DeviceMemoryError):
            runner.replace(fleet["next"].bundle)
        assert list(runner.domains) == ["toy_chirps"]
        assert same(runner.infer(tensor(2)).logits, expected.logits)


def test_a_device_that_fails_in_the_selftest_lets_nothing_in(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runner_on(memory, fleet, tmp_path) as runner:
        cuda = cuda_of(memory)
        wait = cuda.idle

        def fails(stream: int) -> bool:
            raise DeviceError("CUDA_ERROR_LAUNCH_FAILED")

        monkeypatch.setattr(cuda, "idle", fails)
        with pytest.raises(SelftestError, match="CUDA_ERROR_LAUNCH_FAILED"):
            runner.load(fleet["first"].bundle)
        monkeypatch.setattr(cuda, "idle", wait)
        assert runner.domains == {}
        runner.load(fleet["first"].bundle)
        runner.infer(tensor(1))


def test_a_domain_of_another_graph_is_refused_though_its_slots_fit(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    """An engine computes the graph that its kit was made from, and nothing else."""
    path = altered.with_graph(fleet["first"], tmp_path, altered.ignored_slot)
    with runner_on(memory, fleet, tmp_path / "engine") as runner:
        with pytest.raises(SessionLimitError, match="its linked graph is another one"):
            runner.load(path, selftest=False)
        assert "selftest" not in runner.load(fleet["first"].bundle, selftest=False).seconds


# -- installed domains -----------------------------------------------------------------------------


def test_an_installed_domain_is_tested_once_per_engine(
    memory: TrtDevice, fleet: Fleet, artefact: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "installed"
    with runner_on(memory, fleet, tmp_path / "a") as runner:
        runner.install(fleet["first"].bundle, folder)
        assert "selftest" not in runner.load(folder).seconds
        expected = runner.infer(tensor(2))
    staged = deploy(fleet["first"], tmp_path / "b", memory, flavour="staged")
    with Runner(staged, device=memory) as runner:
        assert "selftest" in runner.load(folder).seconds
    with Runner(artefact) as plain:
        assert "selftest" in plain.load(folder).seconds
        assert np.allclose(plain.infer(tensor(2)).logits, expected.logits, atol=1e-4)


def test_a_profile_holds_for_installed_domains_too(
    memory: TrtDevice, fleet: Fleet, artefact: Path, tmp_path: Path
) -> None:
    """Attack: a record that says which graph its slots fit skips their shapes, not the profile."""
    folder = tmp_path / "installed"
    with Runner(artefact) as plain:
        plain.install(fleet["digits"].bundle, folder)
    path = deploy(fleet["digits"], tmp_path, memory, classes=ClassProfile(1, 4, 8))
    with (
        Runner(path, device=memory) as runner,
        pytest.raises(SessionLimitError, match="outside the profile"),
    ):
        runner.load(folder)


def test_the_folder_of_an_engine_stands_for_its_backbone(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    path = deploy(fleet["first"], tmp_path, memory)
    assert dist.survey([fleet["first"].bundle]).backbone(path) == path


# -- threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["replace", "unload", "close"])
def test_a_release_is_freed_when_its_last_request_ends(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path, end: str
) -> None:
    """Exchanged in the middle of a request, which ends on the release that it began on."""
    cuda = cuda_of(memory)
    with runner_on(memory, fleet, tmp_path, contexts=2) as runner:
        old = runner.load(fleet["first"].bundle)
        expected = runner.infer(tensor(1))
        pointer, blocks = bound(runner, "toy_chirps")._block._pointer, cuda.open[0]
        cuda.stall()
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(runner.infer, tensor(1), "toy_chirps")
            executed = cuda.count.executions
            while not cuda.queued():
                assert not job.done()
            if end == "replace":
                swapping = threading.Thread(
                    target=runner.replace, args=(fleet["next"].bundle,), kwargs={"selftest": False}
                )
                swapping.start()
            elif end == "unload":
                runner.unload("toy_chirps")
                swapping = None
            else:
                runner.close()
                swapping = None
            gc.collect()
            assert pointer in cuda._blocks, "a request under way reads it"
            cuda.resume()
            outcome = job.result()
            if swapping is not None:
                swapping.join()
        assert (outcome.release, executed) == (old.release, executed)
        assert same(outcome.logits, expected.logits)
        del job, pool
        gc.collect()
        assert pointer not in cuda._blocks
        if end == "replace":
            assert cuda.open[0] == blocks


def test_a_time_limit_reaches_into_the_device(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    with runner_on(memory, fleet, tmp_path) as runner:
        runner.load(fleet["first"].bundle)
        cuda_of(memory).stall()
        with pytest.raises(TimeLimitError, match=r"limit of 0\.05 s"):
            runner.infer(tensor(1), time_limit_s=0.05)
        cuda_of(memory).resume()
        runner.infer(tensor(1), time_limit_s=60)


def test_after_closing_requests_and_loads_are_refused(
    memory: TrtDevice, fleet: Fleet, tmp_path: Path
) -> None:
    with runner_on(memory, fleet, tmp_path) as runner:
        runner.load(fleet["first"].bundle)
    with pytest.raises(ClosedError):
        runner.infer(tensor(1))
    with pytest.raises(ClosedError):
        runner.load(fleet["first"].bundle)
    assert runner.facts.sessions == 0
    gc.collect()
    assert cuda_of(memory).open == (0, 0, 0)


def test_one_name_is_loaded_once(memory: TrtDevice, fleet: Fleet, tmp_path: Path) -> None:
    with runner_on(memory, fleet, tmp_path) as runner:
        runner.load(fleet["first"].bundle)
        with pytest.raises(LoadedError):
            runner.load(fleet["next"].bundle)


def enough(storm: Storm) -> bool:
    """A device in memory is slow, staged most of all; how many there are says nothing else."""
    return len(storm.seen) >= 2 and len(storm.answers) > 3 and len(storm.exchanges) > 3


@pytest.mark.parametrize("flavour", ["swap", "staged"])
@pytest.mark.parametrize("seconds", [1, pytest.param(30, marks=pytest.mark.full)])
def test_every_answer_is_one_releases_own(
    device: TrtDevice, fleet: Fleet, tmp_path: Path, seconds: int, flavour: str
) -> None:
    """Law: the storm of the runner on onnxruntime, on an engine with two contexts."""
    path = deploy(fleet["first"], tmp_path, device, flavour=flavour)
    known: Known = {}
    with Runner(path, device=device, contexts=2) as runner:
        for name in (name for group in RELEASES.values() for name in group):
            domain = runner.load(fleet[name].bundle, name="one")
            known[domain.release, answer(runner, "one")] = name
            known[domain.release, answer_to_pictures(runner, "one")] = name
            runner.unload("one")
        storm = Storm(runner, fleet, known, tmp_path, RELEASES)
        runner.load(fleet["first"].bundle, name="toy_chirps")
        storm.rage(seconds, enough)
        assert enough(storm), (storm.seen, len(storm.answers), len(storm.exchanges))
        del storm
