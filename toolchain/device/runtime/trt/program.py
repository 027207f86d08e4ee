"""The plans of an engine in running order, and what passes from one to the next.

Rules of this file: a whole network is the special case of no site and one last plan. At each site
the host reads one byte, the gate's decision, and runs ``opened`` or ``closed``; the maps between
plans stay on the device. A tensor that crosses a border must be declared the same on both sides;
image, slots, logits and gates are float32 at every precision. It routes;
:mod:`~toolchain.device.runtime.trt.lanes` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolchain.core.errors import BundleError
from toolchain.device.engine.cache import EnginePlan
from toolchain.device.engine.kit import KitSlot
from toolchain.device.runtime.trt.plan import REBUILD, Plan, PlanTensor, class_range

_ALWAYS_FLOAT = ("image", "logits", "gates", "adaptor.", "gate.")


@dataclass(frozen=True, slots=True)
class SitePlans:
    """The plans of one block that may be skipped; ``closed`` is None where no gate decides.

    ``side`` computes the adaptor's correction and the gate; ``opened`` runs the block, ``closed``
    goes around it. ``decides``: the tensor that the host reads. It is ``open.<site>`` (a bool) or,
    without that one, the logit ``gate.<site>``, open at zero and above. ``gate``: that logit. Both
    are empty without a gate.
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

    sites: tuple[SitePlans, ...]
    last: Plan
    tensors: Mapping[str, PlanTensor]
    slots: Mapping[str, PlanTensor]
    classes: tuple[int, int] | None

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every plan once."""
        staged = (plan for s in self.sites for plan in (s.side, s.opened, s.closed))
        return (*(plan for plan in staged if plan is not None), self.last)

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates' logits where they are tensors of their own, in running order."""
        return tuple(site.gate for site in self.sites if site.gate)


def program(
    models: Sequence[EnginePlan], opened: Callable[[EnginePlan], Plan], slots: Sequence[KitSlot]
) -> Program:
    """Return the program of an engine's ``models``, ``opened`` one by one.

    Raises BundleError where plans do not fit each other or the kit's ``slots``, and what opening
    raises.
    """
    *rest, tail = models
    plans = {(model.role, model.site): opened(model) for model in models}
    # Each site once, in running order: a dictionary keeps the order of its keys.
    names = dict.fromkeys(model.site for model in rest if model.site is not None)
    every = [*plans.values()]
    declared = {slot.name: _slot(slot, every) for slot in slots}
    whole = Program(
        sites=tuple(_site(plans, name) for name in names),
        last=plans[tail.role, tail.site],
        tensors=_crossing(every, declared.keys()),
        slots=declared,
        classes=class_range(tensor for plan in every for tensor in plan.inputs.values()),
    )
    _require_made_before_read(whole)
    return whole


def _site(plans: Mapping[tuple[str, str | None], Plan], site: str) -> SitePlans:
    missing = [role for role in ("side", "opened") if (role, site) not in plans]
    if missing:
        raise BundleError(f"{site}: expected a segment {missing[0]}, got none", fix=REBUILD)
    side, closed = plans["side", site], plans.get(("closed", site))
    if closed is None:
        return SitePlans(side=side, opened=plans["opened", site], closed=None, decides="", gate="")
    gate, byte = f"gate.{site}", f"open.{site}"
    if gate not in side.outputs:
        raise BundleError(f"{side.what}: expected the output {gate}, got none", fix=REBUILD)
    return SitePlans(
        side=side,
        opened=plans["opened", site],
        closed=closed,
        # The byte where there is one: the plan itself has compared the logit then.
        decides=byte if byte in side.outputs else gate,
        gate=gate,
    )


def _slot(slot: KitSlot, plans: Sequence[Plan]) -> PlanTensor:
    """Return a slot as the plans that read it declare it, which must be as the kit does."""
    # The class count is open: None in a kit, -1 in TensorRT.
    shape = tuple(-1 if side is None else side for side in slot.shape)
    readers = [(plan, plan.inputs[slot.name]) for plan in plans if slot.name in plan.inputs]
    for plan, tensor in readers:
        if (tensor.shape, tensor.element) != (shape, "FLOAT"):
            raise BundleError(
                f"{plan.what}: {slot.name}: expected FLOAT {list(shape)} as the kit says, "
                f"got {tensor}",
                fix=REBUILD,
            )
    if not readers:
        raise BundleError(
            f"expected an input for the slot {slot.name}, got a plan without it", fix=REBUILD
        )
    return readers[0][1]


def _crossing(plans: Sequence[Plan], slots: Collection[str]) -> dict[str, PlanTensor]:
    """Return what crosses borders, the same on both sides of each."""
    crossing: dict[str, PlanTensor] = {}
    for plan in plans:
        for name, tensor in plan.tensors.items():
            if name in slots:
                continue
            # Plans hand over an address alone: nothing there tells a shape or a type later.
            first = crossing.setdefault(name, tensor)
            if (first.shape, first.element) != (tensor.shape, tensor.element):
                raise BundleError(
                    f"{plan.what}: {name}: expected {first} as the plan before has it, "
                    f"got {tensor}",
                    fix=REBUILD,
                )
            if name.startswith(_ALWAYS_FLOAT) and tensor.element != "FLOAT":
                raise BundleError(f"{plan.what}: {name}: expected FLOAT, got {tensor}", fix=REBUILD)
    return crossing


def _require_made_before_read(whole: Program) -> None:
    """Require that each tensor is made before a plan reads it, whichever way the gates go."""
    known = {"image", *whole.slots}
    for plan, results in _order(whole):
        if lacking := sorted(plan.inputs.keys() - known):
            raise BundleError(
                f"{plan.what}: expected only tensors that were made before, got {lacking[0]}",
                fix=REBUILD,
            )
        known |= results
    if not {"logits"} <= whole.last.outputs.keys() <= {"logits", "gates"}:
        raise BundleError(
            f"{whole.last.what}: expected image to logits and gates, got "
            f"{list(whole.last.inputs)[:5]} to {list(whole.last.outputs)[:5]}",
            fix=REBUILD,
        )
    if "image" not in whole.tensors:
        raise BundleError(f"{whole.last.what}: expected the input image, got none", fix=REBUILD)


def _order(whole: Program) -> Iterator[tuple[Plan, set[str]]]:
    """Yield each plan and the tensors that are surely there after it."""
    for site in whole.sites:
        yield site.side, set(site.side.outputs)
        results = set(site.opened.outputs)
        if site.closed is not None:
            # Either branch may have run, so only what both give is surely there.
            yield site.closed, set()
            results &= site.closed.outputs.keys()
        yield site.opened, results
    yield whole.last, set()
