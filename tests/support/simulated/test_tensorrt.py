"""The simulated TensorRT: its names are the real ones', and it finds who breaks the rules."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support import apis
from tests.support.simulated import small, tensorrt
from tests.support.simulated.cuda import Misuse
from tests.support.simulated.engines import cuda_of, simulated
from toolchain.device.runtime.trt.plan import Plan, TrtDevice

KINDS = (
    tensorrt.Runtime,
    tensorrt.ICudaEngine,
    tensorrt.IExecutionContext,
    tensorrt.ILogger,
    tensorrt.DataType,
    tensorrt.TensorIOMode,
)
# 8.5 and 8.6 have the first alone, 11 the second, 10.x both.
EITHER = {"device_memory_size", "device_memory_size_v2"}
NAMED = [r for r in apis.releases() if "execute_async_v3" in apis.listing(r)["IExecutionContext"]]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("release", NAMED)
def test_names_are_those_of_the_real_bindings(kind: type, release: str) -> None:
    """On every release that runs engines by tensor names."""
    members = getattr(kind, "__members__", vars(kind))
    mine = {name for name in members if not name.startswith("_")}
    listed = apis.listing(release)[kind.__name__]
    assert mine - EITHER - {"INT64", "UINT8"} <= listed
    if mine & EITHER:
        assert listed & EITHER


def context() -> tuple[TrtDevice, Any]:
    device = simulated()
    return device, Plan(device, small.plan_bytes(), what="small").context()


def ready(device: TrtDevice, made: Any, classes: int = 3) -> int:
    """Set all that the rules ask for; returns a stream."""
    made.set_input_shape("head.weight", (classes, small.FEATURES))
    made.set_input_shape("head.bias", (classes,))
    for name in ("image", "head.weight", "head.bias", "block00.gate.bias", "logits", "gates"):
        made.set_tensor_address(name, device.cuda.allocate(4096))
    return device.cuda.stream()


def test_a_shape_outside_the_profile_is_refused_and_changes_nothing() -> None:
    _, made = context()
    assert made.set_input_shape("head.bias", (small.HIGH,))
    assert not made.set_input_shape("head.bias", (small.HIGH + 1,))
    assert not made.set_input_shape("head.bias", (small.HIGH, 1))
    assert made.get_tensor_shape("head.bias") == (small.HIGH,)
    assert made.infer_shapes() == ["head.weight"]
    assert not made.all_binding_shapes_specified


def test_nothing_runs_before_the_stream_gets_there() -> None:
    device, made = context()
    stream = ready(device, made)
    device.cuda.upload(made.get_tensor_address("image"), device.cuda.pinned(192), stream)
    assert made.execute_async_v3(stream)
    assert made.engine._runs == 0
    device.cuda.wait(stream)
    assert made.engine._runs == 1
    assert made.get_tensor_shape("logits") == (1, 3)


def no_shape(device: TrtDevice, made: Any, stream: int) -> None:
    made._shapes.clear()
    assert not made.execute_async_v3(stream)
    raise Misuse("no shape is False")


def no_address(device: TrtDevice, made: Any, stream: int) -> None:
    made._addresses.pop("logits")
    made.execute_async_v3(stream)


def freed(device: TrtDevice, made: Any, stream: int) -> None:
    device.cuda.free(made.get_tensor_address("head.bias"))
    made.execute_async_v3(stream)


def freed_while_queued(device: TrtDevice, made: Any, stream: int) -> None:
    made.execute_async_v3(stream)
    device.cuda.free(made.get_tensor_address("head.bias"))


def too_small(device: TrtDevice, made: Any, stream: int) -> None:
    made.set_tensor_address("head.weight", device.cuda.allocate(64))
    made.execute_async_v3(stream)


def crooked(device: TrtDevice, made: Any, stream: int) -> None:
    made.set_tensor_address("logits", made.get_tensor_address("logits") + 4)


def two_streams(device: TrtDevice, made: Any, stream: int) -> None:
    made.execute_async_v3(stream)
    made.execute_async_v3(device.cuda.stream())


def two_threads(device: TrtDevice, made: Any, stream: int) -> None:
    made.execute_async_v3(stream)
    errors: list[Exception] = []

    def other() -> None:
        try:
            made.set_input_shape("head.bias", (3,))
        except Misuse as err:
            errors.append(err)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    raise errors[0]


RULES = [
    (no_shape, "no shape"),
    (no_address, "without an address for ..logits"),
    (freed, "was freed"),
    (freed_while_queued, "still uses"),
    (too_small, "over the end"),
    (crooked, "not aligned"),
    (two_streams, "two streams at once"),
    (two_threads, "another one's run is queued"),
]


@pytest.mark.parametrize(("broken", "told"), RULES, ids=[one.__name__ for one, _ in RULES])
def test_a_broken_rule_is_found(broken: Callable[[TrtDevice, Any, int], None], told: str) -> None:
    device, made = context()
    with pytest.raises(Misuse, match=told):
        broken(device, made, ready(device, made))
    for number in [*cuda_of(device)._streams]:
        device.cuda.wait(number)


def test_fresh_memory_holds_no_zeros() -> None:
    device = simulated()
    pointer = device.cuda.allocate(8)
    assert np.isnan(cuda_of(device).read(pointer, 8).view(np.float32)).all()
