"""One loaded backbone, on whatever computes, and which releases can run on it.

Rules of this file: a session holds weights and no domain. A release's tensors are bound once and
named with each run, so any number of releases share one session and never touch each other. A
session computes what its linked graph says, so a release runs only on its own graph: the digests
must be equal, and the patched weights too. Then it does not matter whose bundle the graph came
from. Nothing is ever made up for a release that lacks a slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from toolchain.bundle import Notes
from toolchain.bundle.release import Graph, Release
from toolchain.bundle.slots import Slots
from toolchain.core.arrays import Array, Floats
from toolchain.core.errors import BundleError, GraphError
from toolchain.device.runtime.backend import Answer, Backend, Binding, fits
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.selftest import Deviation


@dataclass(frozen=True, slots=True)
class Cost:
    """What a session took: resident bytes that it added, None where unknown, and seconds."""

    resident_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What a session computes: releases of which it is equal may share one.

    ``graph``: digest of the linked graph. ``weights``: of the patched weights, empty for the
    backbone's own. ``owner``: of the one release that is folded in, empty where domains are
    swapped.
    """

    graph: str
    weights: str = ""
    owner: str = ""

    @classmethod
    def of(cls, release: Release, graph: Graph) -> Computed:
        """Return what ``release`` computes by ``graph``, one of its own."""
        owner = release.digest if graph.linkage.folds_domain else ""
        return cls(graph=graph.digest, weights=release.weights, owner=owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRelease:
    """A release's tensors as a session runs them.

    ``binding``: what the backend made of them. ``classes`` and ``gates``: how many logits and gates
    it answers with. ``resolved``: column and state of each gate that a static model has folded.
    """

    binding: Binding
    classes: int
    gates: int
    resolved: tuple[tuple[int, bool], ...] = ()

    @property
    def slots(self) -> Slots:
        """The arrays in this process's memory that runs read."""
        return self.binding.slots


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A backend's model, as its session knows it.

    ``options``: of its adaptors, those that slot shapes do not show; messages name them.
    ``runs_on``: what computes it, as a self-test's record names it. ``allowed``: how far its
    answers may be from the golden ones, None for what the release itself says.
    """

    computed: Computed
    options: Notes
    runs_on: str
    allowed: Deviation | None = None


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
        return bool(self.computed.owner)

    @property
    def computed(self) -> Computed:
        """What it computes, by digests."""
        return self._model.computed

    @property
    def tested_with(self) -> str:
        """What a self-test on it counts for; the last word is the graph's digest."""
        computed = self.computed
        return " ".join(filter(None, (self._model.runs_on, computed.weights, computed.graph)))

    def allowed(self, release: Release) -> Deviation:
        """Return how far the answers may be from the release's golden ones."""
        return self._model.allowed or Deviation(release.tolerance)

    def misfits(self, release: Release) -> tuple[str, ...]:
        """Return why ``release`` may not run here, one line each; none: :meth:`bind` takes it.

        A graph with another digest is another one, whatever its slots look like.
        """
        computed = self.computed
        if computed.owner:
            is_own = computed.owner == release.digest
            return () if is_own else ("a static model is one domain's own",)
        if release.weights != computed.weights:
            return (_other_weights(release),)
        if computed.graph not in {graph.digest for graph in release.graphs.values()}:
            return self._other_graph(release)
        return self._backend.refusals(release.slots)

    def bind(self, release: Release) -> BoundRelease:
        """Bind the tensors of a release without misfits.

        Raises BundleError for slots that are not those of the graph, and as the backend's ``bind``.
        """
        classes, gates = len(release.classes), len(release.gates)
        if self.is_static:
            # The domain's tensors are folded in, so there are none to bind.
            states = release.resolved()
            return BoundRelease(
                binding=self._backend.bind({}),
                classes=classes,
                gates=gates,
                resolved=tuple((i, states[g]) for i, g in enumerate(release.gates) if g in states),
            )
        # The slots of an installed domain were compared one by one when it was installed.
        is_compared = release.fits_graph == self.computed.graph
        is_whole = release.slots.keys() == self._backend.slots.keys()
        if not (is_compared and is_whole) and (lines := self._other_slots(release)):
            raise BundleError(
                f"{release.name}: its slots are not those of its own graph: {lines[0]}",
                fix="export the domain again",
            )
        binding = self._backend.bind(release.slots)
        return BoundRelease(binding=binding, classes=classes, gates=gates)

    def run(self, images: Floats, bound: BoundRelease, limit: TimeLimit | None = None) -> Answer:
        """Answer float32 ``[N, 3, S, S]``.

        Gates that a static model has resolved answer with an infinity of their state's sign.
        Raises GraphError, also for an answer of another shape, TimeLimitError and DeviceError.
        """
        answer = self._backend.run_bound(images, bound.binding, limit)
        self._require_shape(answer, (len(images), bound.classes), bound.gates)
        for column, state in bound.resolved:
            answer.gates[:, column] = np.inf if state else -np.inf
        return answer

    def _require_shape(self, answer: Answer, logits: tuple[int, int], gates: int) -> None:
        """Logits are a row per picture of a value per class, gates one of a value per gate."""
        expected = logits, (logits[0], gates)
        if (got := (answer.logits.shape, answer.gates.shape)) != expected:
            raise GraphError(
                f"{self._backend.what}: expected logits {list(expected[0])} and gates "
                f"{list(expected[1])}, got {list(got[0])} and {list(got[1])}",
                fix="export the domain again",
            )

    def _other_graph(self, release: Release) -> tuple[str, ...]:
        """Say what the two graphs differ in, as far as slots and options show it."""
        options = (
            f"adaptor option {name}: expected {self._model.options[name]}, got {value}"
            for name, value in release.options.items()
            if self._model.options.get(name, value) != value
        )
        lines = (*self._other_slots(release), *options)
        return lines or ("its linked graph is another one, though its slots are alike",)

    def _other_slots(self, release: Release) -> tuple[str, ...]:
        """Return a line for each slot that release and graph do not have alike."""
        slots = release.slots
        return tuple(
            f"{name}: expected {self._shown(name)}, got {_described(slots.get(name))}"
            for name in sorted({*slots, *self._backend.slots})
            if name not in slots or not self._takes(name, slots[name])
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


def _other_weights(release: Release) -> str:
    if release.patch is None:
        return "the session's backbone is changed for another domain"
    about = release.patch.about
    return f"it changes {about.tensors} of {about.of} tensors of the backbone"


def _described(array: Array | None) -> str:
    return "none" if array is None else f"{array.dtype} {list(array.shape)}"
