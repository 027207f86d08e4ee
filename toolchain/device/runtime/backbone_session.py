"""One session of the backbone, and which releases can run on it.

Rules of this file: an engine holds weights and no domain; a release's tensors are bound once and
named with each run, so any number of releases share one engine and never touch each other. A
release may lack slots that the engine has (it has no gate there, or no adaptor): those are filled
with tensors that do nothing, a correction of zero and a gate that is open. Nothing else is ever
made up.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.bundle import BackboneArtefact, Notes, open_backbone
from toolchain.bundle.backbone import WEIGHTS_NAME
from toolchain.bundle.release import Graph, Release
from toolchain.bundle.slots import Slots
from toolchain.core.errors import BackboneMismatchError, BundleError, GraphError
from toolchain.device.runtime.backend import Backend, Binding
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.ort.backend import Answer, Floats, Linked
from toolchain.device.runtime.ort.session import Session, fits, version
from toolchain.device.runtime.ort.weights import weights_folder
from toolchain.device.runtime.selftest import Allowance

# A gate whose logits are one for every picture; its weight is zero.
OPEN = 1.0
# What may be made up as a whole: all of an adaptor is zero then, and so is its correction.
_PART = re.compile(r"(.+\.(?:gate|adaptor))\..+")
_OUTPUTS = {"logits", "gates"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a session took: resident bytes that it added, None where unknown, and seconds."""

    resident_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A release's tensors as an engine takes them.

    ``binding``: what the backend made of them. ``classes``: how many logits it answers with.
    ``width``: how many gates the backend tells, ``columns``: where the release's stand among them.
    ``resolved``: the state of those that a static model has folded, by place. ``filled``: slots
    made up.
    """

    binding: Binding
    classes: int
    width: int
    columns: tuple[int, ...]
    resolved: tuple[tuple[int, bool], ...]
    filled: tuple[str, ...]

    @property
    def slots(self) -> Slots:
        """The arrays in this process's memory that runs read."""
        return self.binding.slots


@dataclass(frozen=True, slots=True)
class Network:
    """What a backend computes.

    ``gates``: gated blocks in its order; ``options``: of its adaptors, those that slot shapes do
    not show. ``owner``: digest of the one release that is folded in, None where domains are
    swapped. ``graph_digest``: of the linked graph that it was made from. ``runs_on``: what computes
    it, as a self-test's record tells it. ``allowed``: how far its answers may be from the golden
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


class Engine:
    """A backend over a linked graph; any number of threads run it."""

    def __init__(self, backend: Backend[Any], network: Network, *, number: int, cost: Cost) -> None:
        self.number = number
        self.cost = cost
        self._backend = backend
        self._network = network

    @property
    def backend(self) -> Backend[Any]:
        """What computes; whoever measures it may bind tensors of their own."""
        return self._backend

    @property
    def is_static(self) -> bool:
        """Whether one domain is folded in."""
        return self._network.owner is not None

    @property
    def graph_digest(self) -> str:
        """Digest of the linked graph."""
        return self._network.graph_digest

    @property
    def weights(self) -> str:
        """Digest of the patched weights that it holds; empty for the backbone's own."""
        return self._network.weights

    @property
    def tested_with(self) -> str:
        """What a self-test on it counts for; the last word is the graph's digest."""
        found = self._network
        return " ".join(filter(None, (found.runs_on, found.weights, found.graph_digest)))

    def allowed(self, release: Release) -> Allowance:
        """Return how far the answers may be from the release's golden ones."""
        return self._network.allowed or Allowance(release.tolerance)

    def misfits(self, release: Release) -> tuple[str, ...]:
        """Return why ``release`` cannot run here, one line each; none: :meth:`fit` gives it."""
        if self._network.owner is not None:
            own = self._network.owner == release.digest
            return () if own else ("a static model is one domain's own",)
        if release.weights != self._network.weights:
            return (_other_weights(release),)
        refused = self._backend.refusals(release.slots)
        if release.fits_graph and release.fits_graph == self.graph_digest:
            return refused
        lines = [
            f"{name}: expected {self._shown(name)}, got {array.dtype} {list(array.shape)}"
            for name, array in release.slots.items()
            if not self._takes(name, array)
        ]
        missing = sorted(self._backend.slots.keys() - release.slots.keys())
        has = {_part(name) for name in release.slots}
        lines += [f"{name}: missing" for name in missing if _part(name) in has | {""}]
        options = self._network.options
        lines += [
            f"adaptor option {name}: expected {options[name]}, got {value}"
            for name, value in release.options.items()
            if options.get(name, value) != value
        ]
        # A gate that is filled is open; a release with gates in other places has its own columns.
        gates = self._network.gates
        lines += [f"{site}: no such gate" for site in release.gates if site not in gates]
        return (*lines, *refused)

    def fit(self, release: Release) -> Fit:
        """Bind the tensors of a release without misfits; raises as the backend's ``bind``."""
        classes, gates = len(release.classes), self._network.gates
        if self.is_static:
            told = len(release.gates)
            fixed = release.fixed
            states = [(i, fixed[gate]) for i, gate in enumerate(release.gates) if gate in fixed]
            return Fit(self._backend.bind({}), classes, told, tuple(range(told)), tuple(states), ())
        missing = tuple(sorted(self._backend.slots.keys() - release.slots.keys()))
        made_up = {name: self._neutral(name) for name in missing}
        columns = tuple(gates.index(site) for site in release.gates)
        bound = self._backend.bind({**release.slots, **made_up})
        return Fit(bound, classes, len(gates), columns, (), missing)

    def run(self, images: Floats, fit: Fit, limit: TimeLimit | None = None) -> Answer:
        """Answer float32 ``[N, 3, S, S]``; gates are those of the release alone.

        Gates that a static model has resolved answer with an infinity of their state's sign.
        Raises GraphError, also for an answer of another shape, TimeLimitError and DeviceError.
        """
        found = self._backend.run_bound(images, fit.binding, limit)
        self._require_shape(found, (len(images), fit.classes), fit.width)
        whole = fit.columns == tuple(range(found.gates.shape[1]))
        gates = found.gates if whole else found.gates[:, list(fit.columns)]
        for place, state in fit.resolved:
            gates[:, place] = np.inf if state else -np.inf
        return Answer(found.logits, gates, found.taps)

    def _require_shape(self, found: Answer, logits: tuple[int, int], gates: int) -> None:
        """Logits are a row per picture of a value per class, gates one of a value per gate."""
        wanted = logits, (logits[0], gates)
        if (got := (found.logits.shape, found.gates.shape)) != wanted:
            raise GraphError(
                f"{self._backend.what}: expected logits {list(wanted[0])} and gates "
                f"{list(wanted[1])}, got {list(got[0])} and {list(got[1])}",
                fix="export the domain again",
            )

    def _shown(self, name: str) -> str:
        if name not in self._backend.slots:
            return "no such slot"
        return f"{self._backend.element(name) or '?'} {list(self._backend.slots[name])}"

    def _takes(self, name: str, array: npt.NDArray[Any]) -> bool:
        shape = self._backend.slots.get(name)
        if shape != array.shape and not fits(shape, array.shape):
            return False
        return self._backend.element(name) == array.dtype

    def _neutral(self, name: str) -> npt.NDArray[Any]:
        shape = [d if isinstance(d, int) else 1 for d in self._backend.slots[name]]
        value = OPEN if name.endswith(".gate.bias") else 0.0
        return np.full(shape, value, self._backend.element(name))


@dataclass(frozen=True, slots=True)
class Backbone:
    """A verified artefact and what identified its weights file when it was hashed."""

    artefact: BackboneArtefact
    identity: tuple[int, ...]

    def require_unchanged(self) -> None:
        """Raise BackboneMismatchError if the weights file is not the one that was hashed."""
        path = self.artefact.weights_path
        if _identity(path) != self.identity:
            raise BackboneMismatchError(
                f"{path} was changed after it was verified", fix="start again, which verifies it"
            )


def open_verified(folder: Path) -> Backbone:
    """Return the backbone in ``folder``, hashed; raises as ``bundle.open_backbone``."""
    # Taken before hashing: a file exchanged from here on has another identity, hashed or not.
    identity = _identity(folder / WEIGHTS_NAME)
    return Backbone(open_backbone(folder), identity)


def make_engine(
    backbone: Backbone,
    release: Release,
    graph: Graph,
    *,
    number: int,
    threads: int,
    provider: str,
) -> Engine:
    """Make a session over ``graph``, the release's own. Raises BundleError for a graph that lies.

    The weights file was hashed when the backbone was opened; that it is still the same file is
    looked at again once the session holds it. Raises as
    :func:`toolchain.device.runtime.ort.weights.weights_folder` for a release with a patch.
    """
    static = graph.linkage.folds_domain
    before, started = _resident_bytes(), time.perf_counter()
    try:
        with weights_folder(backbone.artefact, release.patch) as folder:
            session = Session(
                graph.read(),
                folder=folder,
                constants=release.slots if static else None,
                threads=threads,
                provider=provider,
                what=graph.name,
            )
    except GraphError as err:
        raise BundleError(f"{release.name}: {err.message}", fix="export the domain again") from err
    if "image" not in session.inputs or not {"logits"} <= set(session.outputs) <= _OUTPUTS:
        raise BundleError(
            f"{session.what}: expected image to logits and gates, got {list(session.inputs)[:5]} "
            f"to {list(session.outputs)[:5]}",
            fix="export the domain again",
        )
    backbone.require_unchanged()
    after = _resident_bytes()
    grown = None if before is None or after is None else max(0, after - before)
    engine = Engine(
        Linked(session),
        Network(
            release.gates,
            release.options,
            release.digest if static else None,
            graph.digest,
            f"onnxruntime {version()} {provider}",
            weights=release.weights,
        ),
        number=number,
        cost=Cost(grown, time.perf_counter() - started),
    )
    # Its own graph's digest would let it pass unseen.
    if lines := engine.misfits(replace(release, fits_graph="")):
        raise BundleError(
            f"{release.name}: its slots are not those of its own graph {graph.name}: {lines[0]}",
            fix="export the domain again",
        )
    return engine


def _other_weights(release: Release) -> str:
    if release.patch is None:
        return "the session's backbone is changed for another domain"
    about = release.patch.about
    return f"it changes {about.tensors} of {about.of} tensors of the backbone"


def _part(slot: str) -> str:
    """Return the gate or adaptor that a slot belongs to (``block00.gate``), nothing for others."""
    found = _PART.fullmatch(slot)
    return found[1] if found else ""


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _resident_bytes() -> int | None:
    """Resident memory of this process, where the system tells it (Linux, proc(5))."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
