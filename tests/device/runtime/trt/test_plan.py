"""Plans and sessions on them: what is refused, what swapping costs, and time limits."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.simulated import small
from tests.support.simulated.engines import cuda_of, given_back, simulated
from tests.support.simulated.small import images, logits, slots
from tests.support.waiting import until
from toolchain.core.errors import (
    BundleError,
    DeviceError,
    DeviceMemoryError,
    EngineError,
    EngineMismatchError,
    GraphError,
    TimeLimitError,
)
from toolchain.device.runtime.backend import Answer
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.trt.backend import EngineBackend
from toolchain.device.runtime.trt.plan import Plan, PlanTensor, TrtDevice, class_range


@pytest.fixture
def device() -> Iterator[TrtDevice]:
    """A device that is empty again in the end."""
    yield from given_back(simulated())


# -- what is not taken -----------------------------------------------------------------------------


def truncated(data: bytes) -> bytes:
    return data[:-7]


def altered(data: bytes) -> bytes:
    return data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]


def text(data: bytes) -> bytes:
    return b"not a plan"


@pytest.mark.parametrize("damage", [truncated, altered, text])
def test_a_corrupt_plan_is_refused_with_what_tensorrt_says(
    device: TrtDevice, damage: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(EngineMismatchError, match="Serialization assertion") as caught:
        Plan(device, damage(small.plan_bytes()), what="small")
    assert "da3 build" in caught.value.fix


def test_a_plan_of_another_tensorrt_is_refused_with_both_versions(device: TrtDevice) -> None:
    with pytest.raises(EngineMismatchError, match=r"10\.3\.0.*got 10\.13\.0"):
        Plan(device, small.plan_bytes(build="10.13.0"), what="small")


def test_a_tensorrt_without_tensor_names_is_told(device: TrtDevice) -> None:
    old = replace(device.trt, features=replace(device.trt.features, named_io=False))
    with pytest.raises(EngineError, match="by tensor names"):
        Plan(TrtDevice(device.cuda, old), small.plan_bytes(), what="small")


def test_no_memory_for_a_context_says_what_is_free() -> None:
    device = simulated(total=4000)
    with pytest.raises(DeviceMemoryError, match=r"4096 bytes .* got 4000 free of 4000"):
        Plan(device, small.plan_bytes(), what="small").context()


def test_lanes_that_find_no_room_leave_nothing_behind() -> None:
    device = simulated(total=9000)
    fix = ""
    try:
        small.session(device, contexts=3)
    except DeviceMemoryError as err:
        fix = err.fix
    assert "contexts=1" in fix
    assert cuda_of(device).open == (0, 0, 0)


def test_contexts_that_cannot_share_a_profile_are_one() -> None:
    """TensorRT 8: a second context would refuse every request."""
    device = simulated(shared=False)
    small.session(device).bind(slots())
    with pytest.raises(EngineError, match="to one context alone") as caught:
        small.session(device, contexts=2)
    assert caught.value.fix == "run with contexts=1"


def side(name: str, low: int, high: int) -> PlanTensor:
    return PlanTensor(name, True, (-1,), "FLOAT", (low,), (high,))


def test_there_is_one_class_count() -> None:
    assert class_range([side("a", 1, 5), side("b", 1, 5)]) == (1, 5)
    assert class_range([PlanTensor("a", True, (3,), "FLOAT", (3,), (3,))]) is None
    with pytest.raises(BundleError, match="one range of class counts"):
        class_range([side("a", 1, 5), side("b", 1, 6)])


FAULTS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("head.bias", lambda a: None, "head.bias: missing"),
    ("head.weight", lambda a: a[:, :-1], r"head.weight: expected float32 \[None, 48\], got .*47"),
    ("head.bias", lambda a: a[None], "head.bias: expected"),
    ("head.bias", lambda a: a.astype(np.float64), "head.bias: expected .* got float64"),
    ("block00.gate.bias", lambda a: np.ones(2, np.float32), "block00.gate.bias: expected"),
    ("head.bias", lambda a: a[:-1], "one count in all slots"),
]


@pytest.mark.parametrize(("name", "change", "told"), FAULTS)
def test_tensors_that_do_not_fit_reach_no_device(
    device: TrtDevice, name: str, change: Callable[[Any], Any], told: str
) -> None:
    """Attack: an engine reads as far as its own shapes say, whatever an address was given for."""
    session = small.session(device)
    before = cuda_of(device).count.allocations
    changed = {n: change(a) if n == name else a for n, a in slots().items()}
    with pytest.raises(GraphError, match=told):
        session.bind({n: a for n, a in changed.items() if a is not None})
    assert cuda_of(device).count.allocations == before


@pytest.mark.parametrize("classes", [small.LOW - 1, small.HIGH + 1])
def test_a_class_count_outside_the_profile_is_refused(device: TrtDevice, classes: int) -> None:
    session = small.session(device)
    with pytest.raises(GraphError, match=rf"expected 2 to 6, the engine's profile, got {classes}"):
        session.bind(slots(classes))
    assert session.refusals(slots(small.HIGH)) == ()


def test_a_picture_of_another_shape_is_refused(device: TrtDevice) -> None:
    session = small.session(device)
    bound = session.bind(slots())
    with pytest.raises(GraphError, match=r"expected the image \[1, 3, 4, 4\], got \[1, 3, 4, 5\]"):
        session.run_bound(np.zeros((1, 3, 4, 5), np.float32), bound, None)
    session.run_bound(images(), bound, None)
    del bound


# -- running and swapping --------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 3))
def test_swapping_sets_addresses_and_nothing_else(turns: list[int], count: int) -> None:
    """Law: no allocation per request, and addresses are set for another domain alone."""
    device = simulated()
    cuda, session = cuda_of(device), small.session(device)
    domains = [slots(2 + seed, seed) for seed in range(3)]
    bound = [session.bind(domain) for domain in domains]
    before, last = replace(cuda.count), None
    for turn in turns:
        addresses = cuda.count.addresses
        pictures = images(count, turn)
        answer = session.run_bound(pictures, bound[turn], None)
        assert np.allclose(answer.logits, logits(pictures, domains[turn]), atol=1e-5)
        assert np.allclose(answer.gates, domains[turn]["block00.gate.bias"][0])
        assert cuda.count.addresses - addresses == (0 if turn == last else len(small.SLOTS))
        last = turn
    after = cuda.count
    counts = (before.allocations, before.pinned, before.streams)
    assert (after.allocations, after.pinned, after.streams) == counts
    assert after.executions - before.executions == count * len(turns)


def test_a_domain_in_the_memory_that_another_one_left_is_itself(device: TrtDevice) -> None:
    """Attack: freed and allocated again at once, with other shapes."""
    session = small.session(device)
    for seed in range(6):
        domain = slots(2 + seed % 4, seed)
        answer = session.run_bound(images(), session.bind(domain), None)
        assert np.allclose(answer.logits, logits(images(), domain), atol=1e-5)


@pytest.mark.parametrize("contexts", [1, 3])
def test_as_many_requests_compute_at_once_as_there_are_contexts(
    device: TrtDevice, contexts: int
) -> None:
    session, cuda = small.session(device, contexts), cuda_of(device)
    bound = session.bind(slots())
    cuda.stall()
    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(session.run_bound, images(1, i), bound, None) for i in range(5)]
        until(lambda: cuda.count.executions == contexts)
        time.sleep(0.05)
        assert cuda.count.executions == contexts
        cuda.resume()
    for seed, job in enumerate(jobs):
        assert np.allclose(job.result().logits, logits(images(1, seed), slots()), atol=1e-5)
    del bound, jobs, job, pool


# -- time limits and faults ------------------------------------------------------------------------


@contextmanager
def stalled(device: TrtDevice) -> Iterator[None]:
    cuda_of(device).stall()
    try:
        yield
    finally:
        cuda_of(device).resume()


def cut(session: EngineBackend, bound: Any, seconds: float = 0.03) -> str:
    """What a request says whose limit is over."""
    with pytest.raises(TimeLimitError) as caught, TimeLimit(seconds) as limit:
        session.run_bound(images(), bound, limit)
    message = caught.value.message
    # The error's frames refer to what they used.
    del caught, bound
    gc.collect()
    return message


def test_a_cut_request_ends_in_time_and_its_memory_stays_until_the_stream_is_idle(
    device: TrtDevice,
) -> None:
    session, cuda = small.session(device), cuda_of(device)
    bound = session.bind(slots())
    taken = cuda.used
    with stalled(device):
        assert cut(session, bound) == "small: stopped after its limit of 0.03 s"
        del bound
        session._lanes.sweep()
        assert cuda.used == taken, "what is queued will still read it"

    def swept() -> bool:
        session._lanes.sweep()
        return cuda.used < taken

    until(swept)
    other = slots(3, 7)
    answer = session.run_bound(images(), session.bind(other), None)
    assert np.allclose(answer.logits, logits(images(), other), atol=1e-5)


def test_a_request_that_waits_for_a_context_ends_in_time_too(device: TrtDevice) -> None:
    session = small.session(device)
    bound = session.bind(slots())
    with ThreadPoolExecutor(1) as pool, stalled(device):
        first: Future[Answer] = pool.submit(session.run_bound, images(), bound, None)
        until(lambda: cuda_of(device).count.executions == 1)
        assert "stopped after its limit" in cut(session, bound)
        assert cuda_of(device).count.executions == 1
    assert np.allclose(first.result().logits, logits(images(), slots()), atol=1e-5)
    del bound, first, pool


def test_a_request_waits_for_a_context_whose_request_was_cut(device: TrtDevice) -> None:
    session = small.session(device)
    bound = session.bind(slots())
    with stalled(device):
        cut(session, bound)
        timer = threading.Timer(0.05, cuda_of(device).resume)
        timer.start()
        answer = session.run_bound(images(), bound, None)
        timer.join()
    assert np.allclose(answer.logits, logits(images(), slots()), atol=1e-5)
    del bound, timer


def test_a_limit_is_looked_at_between_the_pictures_of_a_batch(device: TrtDevice) -> None:
    session = small.session(device)
    bound = session.bind(slots())
    with TimeLimit(0.02) as limit, pytest.raises(TimeLimitError):
        session.run_bound(images(100_000), bound, limit)
    del bound


def test_a_device_that_fails_says_so_and_the_next_request_runs(device: TrtDevice) -> None:
    session, cuda = small.session(device), cuda_of(device)
    bound = session.bind(slots())
    for limit in (None, TimeLimit(60)):
        cuda.fail("CUDA_ERROR_ECC_UNCORRECTABLE")
        with pytest.raises(DeviceError, match="CUDA_ERROR_ECC_UNCORRECTABLE"):
            session.run_bound(images(), bound, limit)
        answer = session.run_bound(images(), bound, None)
        assert np.allclose(answer.logits, logits(images(), slots()), atol=1e-5)
    del bound


def test_a_session_goes_with_its_last_reference_also_in_the_middle_of_a_cut_request() -> None:
    device = simulated()
    session = small.session(device)
    bound = session.bind(slots())
    with stalled(device):
        cut(session, bound)
    del session, bound
    gc.collect()
    assert cuda_of(device).open == (0, 0, 0)
