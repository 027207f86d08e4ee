"""Lanes: what one request at a time runs on, so that none allocates and none waits for another.

Rules of this file: a lane is a stream, one context per plan, and memory for everything except
slots, all made at the start. It remembers which binding the addresses of its contexts name, and
sets addresses only for another one: that is all that swapping costs. A request that was cut short
leaves work on its lane's stream. Such a lane is used again when its stream is idle; until then it
keeps that request's binding alive.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from toolchain.core.arrays import Floats
from toolchain.core.errors import DeviceError, GraphError
from toolchain.device.boards.cuda import Cuda
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.trt.buffers import (
    DeviceBlock,
    DeviceSlots,
    PinnedBlock,
    layout,
    owned,
)
from toolchain.device.runtime.trt.plan import REBUILD, Plan, TrtDevice
from toolchain.device.runtime.trt.program import Program, SitePlans

# How long to look away from a stream between two looks: far below any engine's time.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 2e-5, 2e-4
_LONGEST_LOOK_S = 1e-3


class Lane:
    """Runs one picture at a time. ``what``: what messages call the engine.

    Raises DeviceMemoryError where the device has not enough for it, GraphError where TensorRT does
    not take an address.
    """

    def __init__(self, device: TrtDevice, plans: Program, *, what: str) -> None:
        self._device, self._program, self._what = device, plans, what
        # Room for the most classes that the profile allows: a lane never allocates again.
        high = plans.classes[1] if plans.classes else 1
        sizes = {name: tensor.nbytes(high) for name, tensor in plans.tensors.items()}
        # The host reads these, so they need page-locked memory; the rest never leaves the device.
        read = {"image", "logits", "gates", *plans.gates, *(s.decides for s in plans.sites)}
        self._memory = DeviceBlock(device.cuda, layout(sizes))
        self._host = PinnedBlock(
            device.cuda, layout({name: size for name, size in sizes.items() if name in read})
        )
        self._contexts: dict[Plan, Any] = {plan: plan.context() for plan in plans.plans}
        self._bound: dict[Plan, int] = {}
        self.stream = device.cuda.stream()
        # Kept for as long as the stream may read it.
        self.binding: DeviceSlots | None = None
        # A function, no method: with a reference to the lane it would never go.
        owned(self, _close, device.cuda, self.stream, self._contexts)
        for plan, context in self._contexts.items():
            for name in plan.tensors.keys() - plans.slots.keys():
                self._require(context.set_tensor_address(name, self._memory.address(name)), name)

    @property
    def busy(self) -> bool:
        """Whether its stream still runs something; one that failed does not."""
        try:
            return not self._device.cuda.idle(self.stream)
        except DeviceError:
            return False

    def run(
        self, image: Floats, binding: DeviceSlots, limit: TimeLimit | None
    ) -> dict[str, Floats]:
        """Answer one picture, float32 ``[1, C, H, W]``: logits and gates by name.

        Raises GraphError for a picture of another shape, TimeLimitError and DeviceError.
        """
        expected = self._program.tensors["image"].shape
        if image.shape != expected:
            raise GraphError(
                f"{self._what}: expected the image {list(expected)}, got {list(image.shape)}",
                fix="use the preprocessing of a domain of this backbone",
            )
        self._host.view("image")[:] = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        self._device.cuda.upload(
            self._memory.address("image"), self._host.view("image"), self.stream
        )
        with self._device.trt.journal.watch() as messages:
            try:
                for site in self._program.sites:
                    self._pass(site, binding, limit)
                self._execute(self._program.last, binding)
                return self._answer(limit)
            except (DeviceError, GraphError) as err:
                if not messages.first:
                    raise
                raise type(err)(f"{err.message}: {messages.first}", fix=err.fix) from err

    def _pass(self, site: SitePlans, binding: DeviceSlots, limit: TimeLimit | None) -> None:
        """Run one site; the gate's byte is all that the host waits for."""
        self._execute(site.side, binding)
        if site.closed is None:
            self._execute(site.opened, binding)
            return
        # The logit belongs to the answer; it comes along, as the host waits here anyway.
        for name in dict.fromkeys((site.decides, site.gate)):
            self._fetch(name)
        settle(self._device.cuda, self.stream, limit, self._what)
        element = np.float32 if site.decides == site.gate else np.int8
        (value,) = self._host.view(site.decides).view(element)
        is_open = value >= 0 if site.decides == site.gate else value != 0
        self._execute(site.opened if is_open else site.closed, binding)

    def _execute(self, plan: Plan, binding: DeviceSlots) -> None:
        context = self._contexts[plan]
        if self._bound.get(plan) != binding.number:
            self._bind(plan, context, binding)
        if not context.execute_async_v3(stream_handle=self.stream):
            raise DeviceError(
                f"{plan.what}: TensorRT refused to run",
                fix="start again; if it stays so, build the engine again",
            )

    def _bind(self, plan: Plan, context: Any, binding: DeviceSlots) -> None:
        # Until all is set the context names some addresses of each: nobody may take it for bound.
        self._bound.pop(plan, None)
        for name in plan.inputs.keys() & self._program.slots.keys():
            if -1 in plan.inputs[name].shape:
                self._require(context.set_input_shape(name, binding.shapes[name]), name)
            self._require(context.set_tensor_address(name, binding.address(name)), name)
        if missing := context.infer_shapes():
            self._require(False, ", ".join(missing))
        self._bound[plan] = binding.number

    def _answer(self, limit: TimeLimit | None) -> dict[str, Floats]:
        last = self._program.last
        shapes = {n: tuple(self._contexts[last].get_tensor_shape(n)) for n in last.outputs}
        for name, shape in shapes.items():
            self._fetch(name, 4 * int(np.prod(shape, dtype=np.int64)))
        settle(self._device.cuda, self.stream, limit, self._what)
        outputs = {name: self._floats(name, shape) for name, shape in shapes.items()}
        return {**outputs, **{gate: self._floats(gate, (1, 1)) for gate in self._program.gates}}

    def _fetch(self, name: str, nbytes: int | None = None) -> None:
        target, source = self._host.view(name, nbytes), self._memory.address(name)
        # A network without gates may answer with none, and the driver refuses to copy no bytes.
        if target.size:
            self._device.cuda.download(target, source, self.stream)

    def _floats(self, name: str, shape: tuple[int, ...]) -> Floats:
        count = int(np.prod(shape, dtype=np.int64))
        values: Floats = self._host.view(name, 4 * count).view(np.float32)
        # A copy: the next request of this lane overwrites the page-locked memory.
        return values.reshape(shape).copy()

    def _require(self, taken: bool, name: str) -> None:
        if not taken:
            raise GraphError(f"{self._what}: TensorRT refused the tensor {name}", fix=REBUILD)


class Lanes:
    """A pool of lanes; a request takes one, and waits its turn while all are taken.

    Turns are in the order of asking. Otherwise a thread that sends request after request would take
    its lane back before the threads that wait for one have woken up.
    """

    def __init__(self, device: TrtDevice, plans: Program, count: int, *, what: str) -> None:
        self._what = what
        self._free = [Lane(device, plans, what=what) for _ in range(count)]
        self._draining: list[Lane] = []
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def one(self, binding: DeviceSlots, limit: TimeLimit | None) -> Iterator[Lane]:
        """Yield a lane for ``binding``; it comes back when all that was queued on it has ended.

        Raises TimeLimitError when ``limit`` is over before there is one.
        """
        lane = self._take(limit)
        lane.binding = binding
        finished = False
        try:
            yield lane
            finished = True
        finally:
            with self._changed:
                if finished:
                    lane.binding = None
                    self._free.append(lane)
                else:
                    self._draining.append(lane)
                self._changed.notify_all()

    def sweep(self) -> None:
        """Take back lanes whose cut requests have ended by now."""
        with self._changed:
            self._sweep()

    def _take(self, limit: TimeLimit | None) -> Lane:
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                while True:
                    self._sweep()
                    if self._free and self._waiting[0] is turn:
                        return self._free.pop()
                    _require_time(limit, self._what)
                    # No one wakes this thread when a stream becomes idle or a limit is over: it has
                    # to look again and again.
                    looking = self._draining or limit is not None
                    self._changed.wait(_LONGEST_LOOK_S if looking else None)
            finally:
                self._waiting.remove(turn)
                # Whoever is next may find a lane that is free.
                self._changed.notify_all()

    def _sweep(self) -> None:
        done = [lane for lane in self._draining if not lane.busy]
        for lane in done:
            lane.binding = None
        self._draining = [lane for lane in self._draining if lane not in done]
        self._free += done


def settle(cuda: Cuda, stream: int, limit: TimeLimit | None, what: str) -> None:
    """Return when ``stream`` is idle. Raises TimeLimitError when ``limit`` is over before."""
    if limit is None:
        cuda.wait(stream)
        return
    # CUDA's own wait takes no time limit.
    pause_s = _FIRST_PAUSE_S
    while not cuda.idle(stream):
        _require_time(limit, what)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)


def _require_time(limit: TimeLimit | None, what: str) -> None:
    if limit is not None and limit.over:
        raise limit.stopped(what)


def _close(cuda: Cuda, stream: int, contexts: dict[Any, Any]) -> None:
    """Give back what a lane held once nothing runs on it any more; contexts before their engine."""
    try:
        cuda.wait(stream)
    finally:
        contexts.clear()
        cuda.close_stream(stream)
