"""The CUDA driver's calls, against a small driver in host memory that the test compiles.

What is shown here is that each call has the documented signature, works from any thread, and turns
result codes into our errors. That CUDA does what it says is shown with a device (marker ``gpu``).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.errors import Da3Error, DeviceError, DeviceMemoryError
from toolchain.device.boards import cuda, cudriver
from toolchain.device.boards.cuda import Cuda, CudaDevice, gpus, open_cuda

SOURCE = Path(__file__).parents[2] / "support" / "cuda_driver.c"
LIMIT = 1 << 20
COMPILER = shutil.which("cc") or shutil.which("gcc")


class Standin:
    """The compiled driver and its controls."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.library = ctypes.CDLL(self.path)
        self.library.standin_reset.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t)
        self.library.standin_taken.restype = ctypes.c_size_t

    def reset(self, devices: int = 2, init: int = 0, limit: int = LIMIT) -> None:
        self.library.standin_reset(devices, init, limit)

    def __call__(self, name: str, *arguments: int) -> int:
        return int(getattr(self.library, f"standin_{name}")(*arguments))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C compiler here to make the stand-in driver with")
    made = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    words = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(made), str(SOURCE)]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    return made


@pytest.fixture
def standin(compiled: Path) -> Standin:
    made = Standin(compiled)
    made.reset()
    return made


@pytest.fixture
def device(standin: Standin) -> Iterator[CudaDevice]:
    opened = open_cuda(library=standin.path)
    yield opened
    opened.close()


def filled(array: np.ndarray[Any, Any], seed: int = 0) -> None:
    array[:] = np.random.default_rng(seed).integers(0, 256, len(array), np.uint8)


def test_the_device_is_what_the_protocol_says(device: CudaDevice) -> None:
    """The type checker compares the signatures."""
    interface: Cuda = device
    assert interface.gpu.name == "Stand-in 0"


def test_devices_are_described(standin: Standin) -> None:
    first, second = gpus(standin.path)
    assert first == cuda.Gpu("Stand-in 0", "8.7", 8, LIMIT, integrated=True, driver="12.6")
    assert second == cuda.Gpu("Stand-in 1", "8.7", 9, LIMIT, integrated=False, driver="12.6")


def test_without_a_driver_there_is_no_device() -> None:
    name = "libcuda-that-is-nowhere.so.1"
    assert gpus(name) == ()
    with pytest.raises(DeviceError, match=f"expected an NVIDIA driver, got no {name}") as caught:
        open_cuda(library=name)
    assert "JetPack" in caught.value.fix


def test_a_driver_without_a_device(standin: Standin) -> None:
    standin.reset(devices=0)
    assert gpus(standin.path) == ()
    with pytest.raises(DeviceError, match="expected CUDA device 0, got a machine with 0"):
        open_cuda(library=standin.path)


def test_an_index_that_is_not_there(standin: Standin) -> None:
    for index in (2, -1, 10**6):
        with pytest.raises(DeviceError, match="got a machine with 2"):
            open_cuda(index, standin.path)
    assert standin("retained", 0) == 0


def test_a_driver_that_does_not_start_says_why(standin: Standin) -> None:
    standin.reset(init=803)
    for ask in (gpus, lambda path: open_cuda(library=path)):
        with pytest.raises(DeviceError, match="CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"):
            ask(standin.path)


def test_the_toolkits_stub_is_named_as_such(standin: Standin) -> None:
    standin.reset(init=34)
    with pytest.raises(DeviceError, match="CUDA error 34") as caught:
        gpus(standin.path)
    assert "stubs" in caught.value.fix


def test_an_empty_file_in_place_of_the_driver(tmp_path: Path) -> None:
    """What a container without the NVIDIA runtime has."""
    path = tmp_path / "libcuda.so.1"
    path.touch()
    with pytest.raises(DeviceError, match="file too short") as caught:
        gpus(str(path))
    assert "--runtime nvidia" in caught.value.fix


def test_a_library_that_is_no_driver() -> None:
    other = next((name for name in ("libc.so.6", "libm.so.6") if _loads(name)), None)
    if other is None:
        pytest.skip("no C library of that name here")
    with pytest.raises(DeviceError, match="expected the CUDA driver's cuInit"):
        gpus(other)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def test_bytes_come_back_through_the_device(device: CudaDevice) -> None:
    stream, pointer = device.stream(), device.allocate(1000)
    there, back = device.pinned(1000), device.pinned(1000)
    filled(there)
    device.upload(pointer, there, stream)
    device.download(back, pointer, stream)
    assert not np.array_equal(there, back), "copies are queued, not done"
    device.wait(stream)
    np.testing.assert_array_equal(there, back)


@given(parts=st.lists(st.integers(1, 300), min_size=1, max_size=6), data=st.data())
def test_parts_of_one_allocation(compiled: Path, parts: list[int], data: st.DataObject) -> None:
    """Law: what is written at an offset is read there, whatever lies beside it."""
    Standin(compiled).reset()
    device = open_cuda(library=str(compiled))
    base, stream = device.allocate(sum(parts)), device.stream()
    host = device.pinned(sum(parts))
    filled(host, seed=len(parts))
    starts = [sum(parts[:place]) for place in range(len(parts))]
    for place in data.draw(st.permutations(range(len(parts)))):
        piece = slice(starts[place], starts[place] + parts[place])
        device.upload(base + starts[place], host[piece], stream)
    back = device.pinned(sum(parts))
    device.download(back, base, stream)
    device.wait(stream)
    np.testing.assert_array_equal(back, host)
    device.close()


def test_other_dtypes_are_copied_by_their_bytes(device: CudaDevice) -> None:
    host = device.pinned(64).view(np.float32)
    host[:] = np.linspace(-1, 1, 16, dtype=np.float32)
    pointer, stream = device.allocate(64), device.stream()
    device.upload(pointer, host, stream)
    back = device.pinned(64)
    device.download(back.view(np.float32), pointer, stream)
    device.wait(stream)
    np.testing.assert_array_equal(back.view(np.float32), host)


def test_idle_is_asked_without_waiting(device: CudaDevice) -> None:
    stream, pointer, host = device.stream(), device.allocate(8), device.pinned(8)
    assert device.idle(stream)
    device.upload(pointer, host, stream)
    assert not device.idle(stream)
    assert device.idle(stream)


def test_every_call_works_in_a_thread_that_never_saw_the_device(device: CudaDevice) -> None:
    """The context is the thread's: without setting it the driver answers INVALID_CONTEXT."""
    results: dict[str, Any] = {}

    def apart(work: Callable[[], None]) -> None:
        failed: list[BaseException] = []

        def guarded() -> None:
            try:
                work()
            except Da3Error as err:
                failed.append(err)

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()
        assert not failed, failed

    apart(lambda: results.update(pointer=device.allocate(16)))
    apart(lambda: results.update(host=device.pinned(16)))
    apart(lambda: results.update(stream=device.stream()))
    apart(lambda: device.upload(results["pointer"], results["host"], results["stream"]))
    apart(lambda: device.download(results["host"], results["pointer"], results["stream"]))
    apart(lambda: results.update(idle=device.idle(results["stream"])))
    apart(lambda: device.wait(results["stream"]))
    apart(lambda: results.update(memory=device.memory()))
    apart(lambda: device.close_stream(results["stream"]))
    apart(lambda: device.unpin(results["host"]))
    apart(lambda: device.free(results["pointer"]))
    assert results["memory"] == (LIMIT - 32, LIMIT)


def test_two_devices_in_one_thread(standin: Standin) -> None:
    """Each call selects its own device, also after a call of the other."""
    first, second = open_cuda(0, standin.path), open_cuda(1, standin.path)
    one = first.allocate(8)
    two = second.allocate(8)
    first.free(one)
    second.free(two)
    assert (first.gpu.name, second.gpu.name) == ("Stand-in 0", "Stand-in 1")
    first.close()
    assert (standin("retained", 0), standin("retained", 1)) == (0, 1)
    second.free(second.allocate(8))
    second.close()


def test_out_of_memory_says_what_was_asked_and_is_free(device: CudaDevice) -> None:
    pointer = device.allocate(LIMIT - 100)
    with pytest.raises(DeviceMemoryError, match=r"expected 101 bytes .*, got 100 free of 1048576"):
        device.allocate(101)
    device.free(pointer)
    assert device.memory() == (LIMIT, LIMIT)


def test_out_of_memory_that_can_be_locked(device: CudaDevice) -> None:
    with pytest.raises(DeviceMemoryError, match="expected 1048577 bytes of page-locked"):
        device.pinned(LIMIT + 1)


def test_everything_is_given_back(standin: Standin, device: CudaDevice) -> None:
    pointers = [device.allocate(10) for _ in range(5)]
    arrays = [device.pinned(10) for _ in range(5)]
    streams = [device.stream() for _ in range(3)]
    assert (standin("blocks", 0), standin("blocks", 1), standin("streams")) == (5, 5, 3)
    for pointer, array in zip(pointers, arrays, strict=True):
        device.free(pointer)
        device.unpin(array)
    for stream in streams:
        device.close_stream(stream)
    assert (standin("taken"), standin("blocks", 0), standin("blocks", 1)) == (0, 0, 0)
    assert standin("streams") == 0
    device.close()
    device.close()
    assert standin("retained", 0) == 0


def test_nothing_may_be_called_after_closing(device: CudaDevice) -> None:
    device.close()
    with pytest.raises(DeviceError, match="expected an open device"):
        device.allocate(8)


def test_double_free_is_refused(device: CudaDevice) -> None:
    pointer = device.allocate(8)
    device.free(pointer)
    with pytest.raises(DeviceError, match=r"freeing device memory .*CUDA_ERROR_INVALID_VALUE"):
        device.free(pointer)


def test_double_unpin_and_foreign_memory_never_reach_the_driver(device: CudaDevice) -> None:
    array = device.pinned(8)
    device.unpin(array)
    for wrong in (array, np.zeros(8, np.uint8)):
        with pytest.raises(DeviceError, match="expected page-locked memory"):
            device.unpin(wrong)


def test_a_fault_under_way_is_told_where_it_is_waited_for(device: CudaDevice) -> None:
    stream, host = device.stream(), device.pinned(8)
    device.upload(0xDEAD, host, stream)
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS \(an illegal") as caught:
        device.wait(stream)
    assert "start the process again" in caught.value.fix
    device.upload(0xDEAD, host, stream)
    assert not device.idle(stream)
    with pytest.raises(DeviceError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.idle(stream)


def test_a_closed_stream_is_refused(device: CudaDevice) -> None:
    stream = device.stream()
    device.close_stream(stream)
    with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_HANDLE"):
        device.wait(stream)


def test_a_code_that_the_driver_cannot_name(standin: Standin, device: CudaDevice) -> None:
    standin("fail", 999)
    with pytest.raises(DeviceError, match="expected success, got CUDA error 999"):
        device.stream()


def test_empty_lengths_are_lengths(device: CudaDevice) -> None:
    """A head of no bias has a slot of no bytes; the driver itself refuses a length of zero."""
    pointer, array = device.allocate(0), device.pinned(0)
    assert array.shape == (0,)
    device.free(pointer)
    device.unpin(array)
    with pytest.raises(DeviceError, match="got -1"):
        device.allocate(-1)


def test_strided_arrays_are_refused(device: CudaDevice) -> None:
    host, pointer, stream = device.pinned(16), device.allocate(16), device.stream()
    with pytest.raises(DeviceError, match="expected a contiguous array"):
        device.upload(pointer, host[::2], stream)
    with pytest.raises(DeviceError, match="expected a contiguous array"):
        device.download(host[::2], pointer, stream)


@pytest.mark.gpu
def test_bytes_come_back_through_a_real_device() -> None:
    if not gpus():
        pytest.skip("no NVIDIA device here")
    device = open_cuda()
    stream, pointer = device.stream(), device.allocate(1 << 20)
    there, back = device.pinned(1 << 20), device.pinned(1 << 20)
    filled(there)
    device.upload(pointer, there, stream)
    device.download(back, pointer, stream)
    device.wait(stream)
    assert device.idle(stream)
    np.testing.assert_array_equal(there, back)
    device.close_stream(stream)
    device.free(pointer)
    device.unpin(there)
    device.unpin(back)
    device.close()


def test_every_declared_call_has_its_documented_name() -> None:
    """Those that end in _v2 lost 32-bit sizes in CUDA 3.2; under the plain name they still live."""
    versioned = {name for name in cudriver._CALLS if name.endswith("_v2")}
    assert {name.removesuffix("_v2") for name in versioned} == {
        *("cuDeviceTotalMem", "cuMemGetInfo", "cuMemAlloc", "cuMemFree", "cuStreamDestroy"),
        *("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"),
    }
