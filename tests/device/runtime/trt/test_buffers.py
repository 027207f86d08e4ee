"""Device memory: places, bytes, and that it is given back exactly once."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support.simulated.cuda import Misuse, SimulatedCuda
from toolchain.core.errors import DeviceError, DeviceMemoryError
from toolchain.device.runtime.trt.buffers import ALIGN, DeviceSlots, PinnedBlock, layout

NAMES = st.sampled_from("abcdefgh")


@given(st.dictionaries(NAMES, st.integers(0, 3000)))
def test_places_are_aligned_in_order_and_apart(sizes: dict[str, int]) -> None:
    """Law: every tensor has its bytes to itself, where TensorRT takes an address."""
    arrangement = layout(sizes)
    ends = [0]
    for name, size in sizes.items():
        first, length = arrangement.places[name]
        assert (first % ALIGN, length) == (0, size)
        assert first >= ends[-1]
        ends.append(first + size)
    assert ends[-1] <= arrangement.nbytes < ends[-1] + ALIGN


@given(
    st.dictionaries(
        NAMES, arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_side=7)), min_size=1
    ),
    st.booleans(),
)
def test_slots_lie_on_the_device_byte_for_byte_in_one_allocation(
    slots: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], flipped: bool
) -> None:
    """Law: also arrays that are not contiguous; nothing but the one block stays."""
    cuda = SimulatedCuda()
    given_arrays = {n: a.T if flipped else a for n, a in slots.items()}
    binding = DeviceSlots(cuda, given_arrays)
    for name, array in given_arrays.items():
        assert cuda.read(binding.address(name), array.nbytes).tobytes() == array.tobytes()
        assert binding.shapes[name] == array.shape
    assert cuda.count.allocations == 1
    assert cuda.open == (1, 0, 0)
    assert cuda.used == binding.nbytes
    del binding
    assert cuda.open == (0, 0, 0)


def test_no_slots_take_no_memory() -> None:
    cuda = SimulatedCuda()
    assert DeviceSlots(cuda, {}).nbytes == 0
    assert cuda.count.allocations == 0


def test_two_bindings_are_told_apart_also_in_the_same_memory() -> None:
    """Attack: a context that knows its binding by an address would keep the shapes of the first."""
    cuda, slots = SimulatedCuda(), {"a": np.ones(3, np.float32)}
    first = DeviceSlots(cuda, slots).number
    assert DeviceSlots(cuda, slots).number != first


def test_memory_is_given_back_in_whichever_thread_lets_go_last() -> None:
    cuda = SimulatedCuda()
    bindings = [DeviceSlots(cuda, {"a": np.ones(3, np.float32)})]
    thread = threading.Thread(target=bindings.clear)
    thread.start()
    thread.join()
    assert cuda.open == (0, 0, 0)


def failing(cuda: SimulatedCuda, error: type[Exception]) -> str:
    """What binding raises; the error itself would keep its frames alive."""
    with pytest.raises(error) as caught:
        DeviceSlots(cuda, {"a": np.ones(100, np.float32)})
    message = str(caught.value)
    del caught
    gc.collect()
    return message


def test_a_copy_that_fails_leaves_nothing_behind() -> None:
    cuda = SimulatedCuda()
    cuda.fail("CUDA_ERROR_ILLEGAL_ADDRESS")
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in failing(cuda, DeviceError)
    assert cuda.open == (0, 0, 0)


def test_no_room_leaves_nothing_behind() -> None:
    cuda = SimulatedCuda(total=511)
    assert "512" in failing(cuda, DeviceMemoryError)
    assert cuda.open == (0, 0, 0)
    assert cuda.memory() == (511, 511)


def test_views_of_pinned_memory_are_its_tensors() -> None:
    cuda = SimulatedCuda()
    block = PinnedBlock(cuda, layout({"a": 5, "b": 8}))
    block.view("b")[:] = 7
    assert block.whole[ALIGN : ALIGN + 8].tolist() == [7] * 8
    assert block.view("b", 3).size == 3
    view = block.view("a")
    del block
    assert view.size == 5
    assert cuda.open == (0, 0, 0)


def test_the_simulated_driver_finds_what_it_shall() -> None:
    """It is trusted to find mistakes, so here are some."""
    cuda = SimulatedCuda()
    pointer, host, stream = cuda.allocate(16), cuda.pinned(16), cuda.stream()
    with pytest.raises(Misuse, match="not pinned"):
        cuda.upload(pointer, np.zeros(4, np.uint8), stream)
    with pytest.raises(Misuse, match="contiguous"):
        cuda.upload(pointer, host[::2], stream)
    with pytest.raises(Misuse, match="over the end"):
        cuda.upload(pointer + 8, host, stream)
    host[:] = 3
    cuda.upload(pointer, host, stream)
    with pytest.raises(Misuse, match="still uses"):
        cuda.free(pointer)
    with pytest.raises(Misuse, match="still uses"):
        cuda.unpin(host)
    with pytest.raises(Misuse, match="not idle"):
        cuda.close_stream(stream)
    cuda.wait(stream)
    cuda.download(host, pointer, stream)
    assert host.tolist() != [3] * 16, "a result is not there before the stream is idle"
    cuda.wait(stream)
    assert host.tolist() == [3] * 16
    cuda.upload(pointer, host, stream)
    host[0] = 4
    with pytest.raises(Misuse, match="changed host memory"):
        cuda.wait(stream)
    cuda.free(pointer)
    with pytest.raises(Misuse, match="was freed"):
        cuda.free(pointer)
    with pytest.raises(Misuse, match="was freed"):
        cuda.download(host, pointer, stream)
    cuda.close_stream(stream)
    with pytest.raises(Misuse, match="closed"):
        cuda.wait(stream)
