"""The plans of an engine in running order, and what passes from one to the next.

Rules of this file: a whole network is the special case of no stage and one last plan. The host
reads one byte per gate and picks ``opened`` or ``closed``; maps stay on the device. What crosses a
border must be the same tensor on both sides; image, slots, logits and gates are float32 at every
precision. It routes; :mod:`~toolchain.device.runtime.trt.lanes` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolchain.core.errors import BundleError
from toolchain.device.engine.cache import EnginePlan
from toolchain.device.engine.kit import KitSlot
from toolchain.device.runtime.trt.plan import REBUILD, Plan, Tensor, class_range

_ALWAYS_FLOAT = ("image", "logits", "gates", "adaptor.", "gate.")


@dataclass(frozen=True, slots=True)
class Stage:
    """One site: ``closed`` is None where no gate decides.

    ``decides``: the tensor that the host reads, ``open.<site>`` (a bool) or, without it, the
    logit ``gate.<site>``, open at zero and above; ``gate``: that logit; both empty without a gate.
    """

    side: Plan
    opened: Plan
    closed: Plan | None
    decides: str
    gate: str


@dataclass(frozen=True, slots=True)
class Program:
    """All plans of an engine; ``last`` gives the logits.

    ``tensors``: what crosses, slots apart, by name. ``slots``: name to declared tensor.
    ``classes``: lowest and highest class count that the profile takes, None without slots.
    """

    stages: tuple[Stage, ...]
    last: Plan
    tensors: Mapping[str, Tensor]
    slots: Mapping[str, Tensor]
    classes: tuple[int, int] | None

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every plan once."""
        staged = (plan for s in self.stages for plan in (s.side, s.opened, s.closed))
        return (*(plan for plan in staged if plan is not None), self.last)

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates' logits where they are tensors of their own, in running order."""
        return tuple(stage.gate for stage in self.stages if stage.gate)


def program(
    models: Sequence[EnginePlan], opened: Callable[[EnginePlan], Plan], slots: Sequence[KitSlot]
) -> Program:
    """Return the program of an engine's ``models``, ``opened`` one by one.

    Raises BundleError where plans do not fit each other or the kit's ``slots``, and what opening
    raises.
    """
    *rest, tail = models
    plans = {(model.role, model.site): opened(model) for model in models}
    sites = dict.fromkeys(model.site for model in rest if model.site is not None)
    stages = tuple(_stage(plans, site) for site in sites)
    last = plans[tail.role, tail.site]
    every = [*plans.values()]
    names = {slot.name for slot in slots}
    found = {slot.name: _slot(slot, every) for slot in slots}
    made = Program(
        stages,
        last,
        _crossing(every, names),
        found,
        class_range(tensor for plan in every for tensor in plan.inputs.values()),
    )
    _require_made_before_read(made)
    return made


def _stage(plans: Mapping[tuple[str, str | None], Plan], site: str) -> Stage:
    missing = [role for role in ("side", "opened") if (role, site) not in plans]
    if missing:
        raise BundleError(f"{site}: expected a segment {missing[0]}, got none", fix=REBUILD)
    side, closed = plans["side", site], plans.get(("closed", site))
    if closed is None:
        return Stage(side, plans["opened", site], None, "", "")
    gate, byte = f"gate.{site}", f"open.{site}"
    if gate not in side.outputs:
        raise BundleError(f"{side.what}: expected the output {gate}, got none", fix=REBUILD)
    return Stage(side, plans["opened", site], closed, byte if byte in side.outputs else gate, gate)


def _slot(slot: KitSlot, plans: Sequence[Plan]) -> Tensor:
    """Return a slot as the plans that read it declare it, which must be as the kit does."""
    wanted = tuple(-1 if side is None else side for side in slot.shape)
    readers = [(plan, plan.inputs[slot.name]) for plan in plans if slot.name in plan.inputs]
    for plan, tensor in readers:
        if (tensor.shape, tensor.element) != (wanted, "FLOAT"):
            raise BundleError(
                f"{plan.what}: {slot.name}: expected FLOAT {list(wanted)} as the kit says, "
                f"got {tensor}",
                fix=REBUILD,
            )
    if not readers:
        raise BundleError(
            f"expected an input for the slot {slot.name}, got a plan without it", fix=REBUILD
        )
    return readers[0][1]


def _crossing(plans: Sequence[Plan], slots: set[str]) -> dict[str, Tensor]:
    """Return what crosses borders, the same on both sides of each."""
    found: dict[str, Tensor] = {}
    for plan in plans:
        for name, tensor in plan.tensors.items():
            if name in slots:
                continue
            first = found.setdefault(name, tensor)
            if (first.shape, first.element) != (tensor.shape, tensor.element):
                raise BundleError(
                    f"{plan.what}: {name}: expected {first} as the plan before has it, "
                    f"got {tensor}",
                    fix=REBUILD,
                )
            if name.startswith(_ALWAYS_FLOAT) and tensor.element != "FLOAT":
                raise BundleError(f"{plan.what}: {name}: expected FLOAT, got {tensor}", fix=REBUILD)
    return found


def _require_made_before_read(made: Program) -> None:
    """Hold the running order to what each plan reads, with every gate in either state."""
    known = {"image", *made.slots}
    for plan, results in _order(made):
        if lacking := sorted(plan.inputs.keys() - known):
            raise BundleError(
                f"{plan.what}: expected only tensors that were made before, got {lacking[0]}",
                fix=REBUILD,
            )
        known |= results
    if not {"logits"} <= made.last.outputs.keys() <= {"logits", "gates"}:
        raise BundleError(
            f"{made.last.what}: expected image to logits and gates, got "
            f"{list(made.last.inputs)[:5]} to {list(made.last.outputs)[:5]}",
            fix=REBUILD,
        )
    if "image" not in made.tensors:
        raise BundleError(f"{made.last.what}: expected the input image, got none", fix=REBUILD)


def _order(made: Program) -> Iterator[tuple[Plan, set[str]]]:
    """Yield each plan and the tensors that are surely there after it."""
    for stage in made.stages:
        yield stage.side, set(stage.side.outputs)
        results = set(stage.opened.outputs)
        if stage.closed is not None:
            yield stage.closed, set()
            results &= stage.closed.outputs.keys()
        yield stage.opened, results
    yield made.last, set()
