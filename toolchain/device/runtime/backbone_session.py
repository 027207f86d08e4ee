"""One loaded backbone, on whatever computes, and which releases can run on it.

Rules of this file: a session holds weights and no domain. A release's tensors are bound once and
named with each run, so any number of releases share one session and never touch each other. A
release may lack slots that the session has (it has no gate there, or no adaptor). Those are filled
with tensors that do nothing: a correction of zero, and a gate that is open. Nothing else is ever
made up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolchain.bundle import Notes
from toolchain.bundle.release import Release
from toolchain.bundle.slots import Slots
from toolchain.core.arrays import Array, Floats
from toolchain.core.errors import GraphError
from toolchain.device.runtime.backend import Answer, Backend, Binding, fits
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.selftest import Allowance

# A gate whose logits are one for every picture: its weight is zero.
OPEN = 1.0
# Slots are filled by whole gates and adaptors: all of an adaptor is zero then, and so is its
# correction. Half an adaptor would be one that nobody trained.
_PART = re.compile(r"(.+\.(?:gate|adaptor))\..+")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a session took: resident bytes that it added, None where unknown, and seconds."""

    resident_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRelease:
    """A release's tensors as a session runs them.

    ``binding``: what the backend made of them. ``classes``: how many logits it answers with.
    ``width``: how many gates the backend answers with; ``columns``: where the release's gates stand
    among them. ``resolved``: column and state of each gate that a static model has folded.
    ``filled``: slots that were made up.
    """

    binding: Binding
    classes: int
    width: int
    columns: tuple[int, ...]
    resolved: tuple[tuple[int, bool], ...] = ()
    filled: tuple[str, ...] = ()

    @property
    def slots(self) -> Slots:
        """The arrays in this process's memory that runs read."""
        return self.binding.slots


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a backend computes.

    ``gates``: gated blocks in its order; ``options``: of its adaptors, those that slot shapes do
    not show. ``owner``: digest of the one release that is folded in, None where domains are
    swapped. ``graph_digest``: of the linked graph that it was made from. ``runs_on``: what computes
    it, as a self-test's record names it. ``allowed``: how far its answers may be from the golden
    ones, None for what the release itself says. ``weights``: digest of the patched weights that it
    was made from, empty for the backbone's own.
    """

    gates: tuple[str, ...]
    options: Notes
    owner: str | None
    graph_digest: str
    runs_on: str
    allowed: Allowance | None = None
    weights: str = ""


class BackboneSession:
    """A backend over a linked graph; any number of threads run it."""

    def __init__(
        self, backend: Backend[Any], model: ModelFacts, *, number: int, cost: Cost
    ) -> None:
        self.number = number
        self.cost = cost
        self._backend = backend
        self._model = model

    @property
    def backend(self) -> Backend[Any]:
        """What computes; whoever measures it may bind tensors of their own."""
        return self._backend

    @property
    def is_static(self) -> bool:
        """Whether one domain is folded in."""
        return self._model.owner is not None

    @property
    def graph_digest(self) -> str:
        """Digest of the linked graph."""
        return self._model.graph_digest

    @property
    def weights(self) -> str:
        """Digest of the patched weights that it holds; empty for the backbone's own."""
        return self._model.weights

    @property
    def tested_with(self) -> str:
        """What a self-test on it counts for; the last word is the graph's digest."""
        model = self._model
        return " ".join(filter(None, (model.runs_on, model.weights, model.graph_digest)))

    def allowed(self, release: Release) -> Allowance:
        """Return how far the answers may be from the release's golden ones."""
        return self._model.allowed or Allowance(release.tolerance)

    def misfits(self, release: Release) -> tuple[str, ...]:
        """Return why ``release`` cannot run here, one line each; none: :meth:`bind` takes it."""
        model = self._model
        if model.owner is not None:
            is_own = model.owner == release.digest
            return () if is_own else ("a static model is one domain's own",)
        if release.weights != model.weights:
            return (_other_weights(release),)
        refused = self._backend.refusals(release.slots)
        # It was compared slot by slot when it was installed.
        if release.fits_graph and release.fits_graph == self.graph_digest:
            return refused
        lines = [
            f"{name}: expected {self._shown(name)}, got {array.dtype} {list(array.shape)}"
            for name, array in release.slots.items()
            if not self._takes(name, array)
        ]
        missing = sorted(self._backend.slots.keys() - release.slots.keys())
        # A slot may be filled only if the release has nothing of its whole gate or adaptor. What
        # is neither (the head) is never filled.
        present = {"", *map(_part, release.slots)}
        lines += [f"{name}: missing" for name in missing if _part(name) in present]
        lines += [
            f"adaptor option {name}: expected {model.options[name]}, got {value}"
            for name, value in release.options.items()
            if model.options.get(name, value) != value
        ]
        # A gate that the session has and the release lacks is filled, and open. The other way
        # round the release's gate would never be asked.
        lines += [f"{site}: no such gate" for site in release.gates if site not in model.gates]
        return (*lines, *refused)

    def bind(self, release: Release) -> BoundRelease:
        """Bind the tensors of a release without misfits; raises as the backend's ``bind``."""
        classes, gates = len(release.classes), self._model.gates
        if self.is_static:
            width, fixed = len(release.gates), release.fixed
            return BoundRelease(
                binding=self._backend.bind({}),
                classes=classes,
                width=width,
                columns=tuple(range(width)),
                resolved=tuple((i, fixed[g]) for i, g in enumerate(release.gates) if g in fixed),
            )
        missing = tuple(sorted(self._backend.slots.keys() - release.slots.keys()))
        neutral = {name: self._neutral(name) for name in missing}
        return BoundRelease(
            binding=self._backend.bind({**release.slots, **neutral}),
            classes=classes,
            width=len(gates),
            columns=tuple(gates.index(site) for site in release.gates),
            filled=missing,
        )

    def run(self, images: Floats, bound: BoundRelease, limit: TimeLimit | None = None) -> Answer:
        """Answer float32 ``[N, 3, S, S]``; gates are those of the release alone.

        Gates that a static model has resolved answer with an infinity of their state's sign.
        Raises GraphError, also for an answer of another shape, TimeLimitError and DeviceError.
        """
        answer = self._backend.run_bound(images, bound.binding, limit)
        self._require_shape(answer, (len(images), bound.classes), bound.width)
        gates = answer.gates
        # Taking all columns in order would copy for nothing.
        if bound.columns != tuple(range(gates.shape[1])):
            gates = gates[:, list(bound.columns)]
        for column, state in bound.resolved:
            gates[:, column] = np.inf if state else -np.inf
        return Answer(logits=answer.logits, gates=gates, taps=answer.taps)

    def _require_shape(self, answer: Answer, logits: tuple[int, int], gates: int) -> None:
        """Logits are a row per picture of a value per class, gates one of a value per gate."""
        expected = logits, (logits[0], gates)
        if (got := (answer.logits.shape, answer.gates.shape)) != expected:
            raise GraphError(
                f"{self._backend.what}: expected logits {list(expected[0])} and gates "
                f"{list(expected[1])}, got {list(got[0])} and {list(got[1])}",
                fix="export the domain again",
            )

    def _shown(self, name: str) -> str:
        if name not in self._backend.slots:
            return "no such slot"
        return f"{self._backend.element(name) or '?'} {list(self._backend.slots[name])}"

    def _takes(self, name: str, array: Array) -> bool:
        shape = self._backend.slots.get(name)
        # Equal shapes are the common case, and quicker to see.
        if shape != array.shape and not fits(shape, array.shape):
            return False
        return self._backend.element(name) == array.dtype

    def _neutral(self, name: str) -> Array:
        shape = [d if isinstance(d, int) else 1 for d in self._backend.slots[name]]
        value = OPEN if name.endswith(".gate.bias") else 0.0
        return np.full(shape, value, self._backend.element(name))


def _other_weights(release: Release) -> str:
    if release.patch is None:
        return "the session's backbone is changed for another domain"
    about = release.patch.about
    return f"it changes {about.tensors} of {about.of} tensors of the backbone"


def _part(slot: str) -> str:
    """Return the gate or adaptor that a slot belongs to (``block00.gate``), nothing for others."""
    match = _PART.fullmatch(slot)
    return match[1] if match else ""
