"""The linked models that are timed: the plain backbone, the flavours and forms, the naive export.

Rules of this file: every model comes from the library's own path (attach, split, link, Session with
one thread). Gates are put into a state through their bias slots alone, so ``swap`` is one session
for all states. It times nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from safetensors.numpy import load as load_safetensors
from torch import nn

from benchmarks.joins import Change
from toolchain.bundle.linkage import Form, Linkage
from toolchain.bundle.slots import Slots
from toolchain.core.timing import Call
from toolchain.device.runtime.ort.backend import LinkedModel
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph import store
from toolchain.export.graph.halves import recompose
from toolchain.export.graph.link import link
from toolchain.export.graph.names import IMAGE, SLOTS_FILE, WEIGHTS_FILE
from toolchain.export.graph.split import PackedHalves, split
from toolchain.training.adapt.attached import AttachedModel, attach

FORCE = 1000.0
# A full-resolution grouped 3x3 adaptor on every block: what one writes first.
NAIVE = {"pool": 1, "kernel": 3, "groups": 8, "rank": 32, "placement": "all"}


@dataclass(frozen=True, slots=True)
class Case:
    """A backbone under test: ``side`` is the input's height and width in pixels."""

    name: str
    build: Callable[[], nn.Module]
    side: int
    classes: int


class FormBench(AbstractContextManager["FormBench"]):
    """One backbone's halves on disk, and sessions over them."""

    def __init__(self, case: Case, *, cache: Path | None = None) -> None:
        self.case = case
        self._temporary = tempfile.TemporaryDirectory(prefix="da3-bench-")
        self.cache = cache
        self.model = self._attached("da3")
        self.halves = split(self.model, cache=cache)
        self.slots: dict[str, npt.NDArray[Any]] = load_safetensors(self.halves.slots_data)
        # In running order, which a dictionary of tensors does not promise.
        self.gates = sorted(name for name in self.slots if name.endswith(".gate.bias"))
        self.folder = self._written(self.halves, "da3")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def images(self, batch: int) -> npt.NDArray[np.float32]:
        """Return normal noise, float32 ``[batch, 3, side, side]``."""
        shape = (batch, 3, self.case.side, self.case.side)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def state(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return the slots by name with all gates open, all closed, or every second one closed."""
        return {
            **self.slots,
            **{
                gate: np.full_like(self.slots[gate], FORCE if opened else -FORCE)
                for gate, opened in zip(self.gates, self._opened(name), strict=True)
            },
        }

    def plain(self, form: Form) -> LinkedModel:
        """Return the frozen backbone with a head and nothing else, as fast as the runtime can."""
        halves = split(self._attached("head"), cache=self.cache)
        folder = self._written(halves, "head")
        graph = link(halves, Linkage("static", form))
        return self._linked(graph, folder, load_safetensors(halves.slots_data))

    def swap(self, form: Form) -> LinkedModel:
        """Return the swap model; its state is in the slots given with each run."""
        return self._linked(link(self.halves, Linkage("swap", form)), self.folder)

    def static(self, state: str) -> LinkedModel:
        """Return the static model with every gate resolved as ``state`` says."""
        sites = [gate.removesuffix(".gate.bias") for gate in self.gates]
        rates = {s: float(o) for s, o in zip(sites, self._opened(state), strict=True)}
        graph = link(self.halves, Linkage("static", "if"), rates=rates)
        return self._linked(graph, self.folder, self.slots)

    def naive(self) -> Session:
        """Return the model as a straight export gives it: full-size adaptors, nothing skipped."""
        halves = split(self._attached("da3", **NAIVE), cache=self.cache)
        folder = self._written(halves, "naive")
        return Session(store.to_bytes(recompose(halves)), folder=folder, what="naive")

    def rejected(self, change: Change) -> LinkedModel:
        """Return the swap model of form ``if`` in a form that lost."""
        model = change(ir.to_proto(link(self.halves, Linkage("swap", "if"))), self.halves.adapted)
        return LinkedModel(
            Session(model.SerializeToString(), folder=self.folder, what="rejected form")
        )

    def floor(self, state: str) -> float:
        """Return the share of the backbone's multiply-adds that run in ``state``."""
        flops = {cut.site: cut.flops for cut in self.halves.cuts}
        closed = sum(
            flops[gate.removesuffix(".gate.bias")]
            for gate, opened in zip(self.gates, self._opened(state), strict=True)
            if not opened
        )
        return 1 - closed / self.model.anatomy.flops

    def call(self, runner: LinkedModel, batch: int, state: str | None = None) -> Call:
        """Return a call that answers one batch in the given state."""
        images, slots = self.images(batch), {} if state is None else self.state(state)
        return lambda: runner.run(images, slots)

    def naive_call(self, session: Session) -> Call:
        """Return a call of the naive model with one picture; it takes no slots."""
        feeds = {IMAGE: self.images(1)}
        return lambda: session.run(feeds)

    def _opened(self, state: str) -> list[bool]:
        places = range(len(self.gates))
        return {
            "open": [True for _ in places],
            "half": [place % 2 == 0 for place in places],
            "closed": [False for _ in places],
        }[state]

    def _attached(self, method: str, **options: Any) -> AttachedModel:
        side = self.case.side
        return attach(
            self.case.build(),
            method=method,
            classes=self.case.classes,
            input_shape=(3, side, side),
            **options,
        )

    def _written(self, halves: PackedHalves, name: str) -> Path:
        folder = Path(self._temporary.name) / name
        folder.mkdir(exist_ok=True)
        (folder / WEIGHTS_FILE).write_bytes(halves.weights_data)
        (folder / SLOTS_FILE).write_bytes(halves.slots_data)
        return folder

    def _linked(self, graph: ir.Model, folder: Path, constants: Slots | None = None) -> LinkedModel:
        data = store.to_bytes(graph)
        return LinkedModel(Session(data, folder=folder, constants=constants, what=self.case.name))
