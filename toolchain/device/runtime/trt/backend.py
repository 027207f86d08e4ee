"""A TensorRT engine as a backend of :mod:`~toolchain.device.runtime.backbone_session`.

Rules of this file: loading a domain allocates once and touches no engine; a request allocates
nothing on the device. Any number of threads may run it; as many pictures are computed at the same
time as there are lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from toolchain.bundle.slots import Slots
from toolchain.core.arrays import Floats
from toolchain.core.errors import GraphError
from toolchain.device.runtime.backend import Answer, Shape, answer
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.trt.buffers import DeviceSlots
from toolchain.device.runtime.trt.lanes import Lanes
from toolchain.device.runtime.trt.plan import PlanTensor, TrtDevice
from toolchain.device.runtime.trt.program import Program

_FLOAT = np.dtype(np.float32)


class EngineBackend:
    """Implements :class:`toolchain.device.runtime.backend.Backend` on ``device``.

    ``contexts``: how many requests compute at the same time; each costs its activations' memory.
    ``gates``: blocks with a gate, in the order of the answers. Raises DeviceMemoryError.
    """

    def __init__(
        self,
        device: TrtDevice,
        plans: Program,
        *,
        gates: tuple[str, ...],
        contexts: int = 1,
        what: str = "engine",
    ) -> None:
        self._what, self._device, self._program = what, device, plans
        self._gates = tuple(f"gate.{site}" for site in gates) if plans.gates else ()
        self._shapes: dict[str, Shape] = {n: _shape(t) for n, t in plans.slots.items()}
        self._lanes = Lanes(device, plans, contexts, what=what)

    @property
    def what(self) -> str:
        """What messages call it."""
        return self._what

    @property
    def slots(self) -> Mapping[str, Shape]:
        """Declared shape of every slot; None is the class count."""
        return self._shapes

    def element(self, slot: str) -> np.dtype[Any] | None:
        """Return float32, which every slot is at every precision."""
        return _FLOAT if slot in self._shapes else None

    def refusals(self, slots: Slots) -> tuple[str, ...]:
        """Return a line for a class count outside of the engine's optimisation profile."""
        if self._program.classes is None:
            return ()
        low, high = self._program.classes
        counts = {
            side
            for name, tensor in self._program.slots.items()
            # A slot that is missing has no sides; bind() names it.
            for side, open_side in zip(_sides(slots, name), tensor.shape, strict=False)
            if open_side == -1
        }
        if len(counts) > 1:
            return (f"classes: expected one count in all slots, got {sorted(counts)}",)
        return tuple(
            f"classes: expected {low} to {high}, the engine's profile, got {count}: "
            "a dynamic shape outside the profile"
            for count in counts
            if not low <= count <= high
        )

    def bind(self, slots: Slots) -> DeviceSlots:
        """Copy a domain's tensors to the device, in one allocation.

        Raises GraphError for tensors that are missing, of another shape or dtype, or outside the
        profile. All of that is checked here, as a device does not notice an address that names less
        memory than the engine reads. Raises DeviceMemoryError where there is no room.
        """
        # Requests that were cut short may still hold the memory of domains that are gone.
        self._lanes.sweep()
        faults = [line for name in self._shapes if (line := self._fault(name, slots))]
        faults = faults or [*self.refusals(slots)]
        if faults:
            raise GraphError(f"{self._what}: {faults[0]}", fix="export the domain again")
        return DeviceSlots(self._device.cuda, {name: slots[name] for name in self._shapes})

    def run_bound(self, images: Floats, binding: DeviceSlots, limit: TimeLimit | None) -> Answer:
        """Answer float32 ``[N, C, H, W]``, picture by picture on one lane.

        Raises GraphError, TimeLimitError also while all lanes are taken, and DeviceError.
        """
        answers: list[dict[str, Floats]] = []
        with ExitStack() as stack:
            lane = stack.enter_context(self._lanes.one(binding, limit))
            # An engine is built for one picture.
            for row in range(len(images)):
                if limit is not None and limit.over:
                    raise limit.stopped(self._what)
                answers.append(lane.run(images[row : row + 1], binding, limit))
        outputs = {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}
        return answer(outputs, self._gates)

    def _fault(self, name: str, slots: Slots) -> str:
        expected, array = self._shapes[name], slots.get(name)
        if array is None:
            return f"{name}: missing"
        fits = len(expected) == array.ndim and all(
            side in (None, got) for side, got in zip(expected, array.shape, strict=True)
        )
        if fits and array.dtype == _FLOAT:
            return ""
        return f"{name}: expected float32 {list(expected)}, got {array.dtype} {list(array.shape)}"


def _shape(tensor: PlanTensor) -> Shape:
    return tuple(None if side == -1 else side for side in tensor.shape)


def _sides(slots: Slots, name: str) -> tuple[int, ...]:
    return slots[name].shape if name in slots else ()
