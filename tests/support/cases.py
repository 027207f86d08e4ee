"""Captured toys, each made once per run: the ground that graph, runtime and check tests stand on.

Rules of this file: the cases cover every toy, method and option that shapes a graph at least once,
not every combination. Whoever needs to change a model builds one of their own.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import torch
from safetensors.numpy import load as load_safetensors
from torch import Tensor, nn

from tests.support import shared, toys
from toolchain.bundle.linkage import LINKAGES, STAGED, Linkage
from toolchain.device.runtime.backend import Runnable
from toolchain.device.runtime.ort.backend import LinkedModel
from toolchain.device.runtime.ort.session import Session
from toolchain.export.check import candidates
from toolchain.export.graph import split as split_file
from toolchain.export.graph import store
from toolchain.export.graph.capture import Captured, capture
from toolchain.export.graph.halves import Halves, read_halves
from toolchain.export.graph.link import link
from toolchain.export.graph.names import SLOTS_FILE, WEIGHTS_FILE
from toolchain.export.graph.split import PackedHalves, split
from toolchain.recipe import AdaptorOptions
from toolchain.training.adapt.attached import AttachedModel, attach
from toolchain.training.adapt.blocks import examine


class TupleBlock(toys.Residual):
    """A block that returns its map and something else."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x.mean((2, 3))


class TupleNet(nn.Module):
    """Blocks whose answer is a tuple; only its first entry goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = toys.stem(8)
        self.blocks = nn.ModuleList([TupleBlock(8, 8), TupleBlock(8, 8)])
        self.fc = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x, _ = block(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Steered(toys.Residual):
    """A block that reads a second value of each sample."""

    def forward(self, x: Tensor, steer: Tensor | None = None) -> Tensor:
        assert steer is not None
        return super().forward(x) * steer


class SteeredNet(nn.Module):
    """Two blocks that read a value of each sample besides their input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = toys.stem(8)
        self.blocks = nn.ModuleList([toys.Residual(8, 8), Steered(8, 8), Steered(8, 8)])
        self.fc = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        steer = torch.sigmoid(x.mean((1, 2, 3), keepdim=True))
        for block in self.blocks[1:]:
            x = block(x, steer)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def _tuples() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TupleNet().eval()


@dataclass(frozen=True)
class Case:
    """A toy with a domain; ``fresh`` leaves the adaptors at zero and the gates open."""

    toy: str
    method: str = "da3"
    classes: int = toys.CLASSES
    fresh: bool = False
    build: Callable[[], nn.Module] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (3, 8, 8) if self.build else toys.TOYS[self.toy].input_shape

    def images(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.input_shape, generator=generator)

    def model(self) -> AttachedModel:
        backbone = self.build() if self.build else toys.backbone(self.toy)
        options = {"rank": 4, "pool": 2, **self.options}
        model = attach(
            backbone,
            method=self.method,
            classes=self.classes,
            input_shape=self.input_shape,
            **options,
        )
        if self.fresh:
            return model
        return toys.balanced(toys.scrambled(model), self.images(16))


CASES = {
    "plain": Case("plain", options={"placement": "all"}),
    "plain-da2": Case("plain", "da2", options={"placement": "all", "pool": 0}),
    "plain-head": Case("plain", "head"),
    "plain-zero": Case("plain", classes=9, fresh=True, options={"kernel": 3, "placement": "all"}),
    "preactivation": Case("preactivation", options={"norm": "batch"}),
    "inverted": Case("inverted", options={"kernel": 3, "placement": "all"}),
    "odd": Case("odd", options={"placement": "all"}),
    "odd-gateable": Case("odd", options={"pool": 1}),
    "one_pixel": Case("one_pixel", options={"norm": "group"}),
    "single": Case("single", options={"pool": 1}),
    "grouped": Case("grouped", options={"groups": 4, "pool": 0}),
    "headless": Case("headless", options={"pool": 4, "norm": "group"}),
    "channels_last": Case("channels_last"),
    "tokens": Case("tokens", options={"norm": "batch"}),
    "tokens-da2": Case("tokens", "da2", options={"attention": "softmax"}),
    "tuples": Case("tuples", build=_tuples),
}


class Made:
    """A case, captured and split; ``raw`` is the captured graph before BatchNorm was folded.

    With a ``name`` one worker captures it for all of them.
    """

    def __init__(self, case: Case, name: str = "") -> None:
        self.case = case
        self.model = case.model()
        self.captured = _captured(name, self.model) if name else capture(self.model)
        self.raw = store.to_bytes(self.captured.model)
        with (
            mock.patch.object(split_file, "trace_program"),
            mock.patch.object(split_file, "translate", lambda *_: self.captured),
        ):
            self.halves = split(self.model)
        self._folder = tempfile.TemporaryDirectory(prefix="da3-case-")
        self.folder = Path(self._folder.name)
        (self.folder / WEIGHTS_FILE).write_bytes(self.halves.weights_data)
        (self.folder / SLOTS_FILE).write_bytes(self.halves.slots_data)

    @property
    def slots(self) -> dict[str, np.ndarray[Any, Any]]:
        return load_safetensors(self.halves.slots_data)

    def loaded(self) -> Halves:
        """The halves as read back from their bytes, tensors in memory."""
        backbone = store.from_bytes(self.halves.backbone_graph, what="backbone")
        domain = store.from_bytes(self.halves.domain_graph, what="domain")
        store.load_tensors(backbone, WEIGHTS_FILE, self.halves.weights_data)
        store.load_tensors(domain, SLOTS_FILE, self.halves.slots_data)
        return read_halves(backbone, domain)

    def graph(self, linkage: Linkage, **options: Any) -> bytes:
        """The linked graph; ``options``: rates and taps, as :func:`link` takes them."""
        return store.to_bytes(link(self.halves, linkage, **options))

    def session(self, linkage: Linkage, *, exact: bool = False, **options: Any) -> Session:
        constants = self.slots if linkage.folds_domain else None
        graph = self.graph(linkage, **options)
        return Session(
            graph, folder=self.folder, constants=constants, exact=exact, what=linkage.stem
        )

    def run(self, linkage: Linkage, **options: Any) -> Runnable:
        return LinkedModel(self.session(linkage, **options))

    def staged(self) -> Runnable:
        return candidates.staged(self.halves, self.folder).run

    def flavours(self) -> dict[str, Runnable]:
        """Every flavour in every form, and staged."""
        graphs = [linkage for linkage in LINKAGES if not linkage.is_segmented]
        return {**{one.stem: self.run(one) for one in graphs}, STAGED.stem: self.staged()}


def _captured(name: str, model: AttachedModel) -> Captured:
    """Return the captured graph of a case, which takes seconds: one worker captures for all."""

    def captured() -> bytes:
        graph = capture(model)
        return pickle.dumps((store.to_bytes(graph.model), graph.opset, graph.cuts, graph.slots))

    raw, opset, cuts, slots = pickle.loads(shared.once(f"captured/{name}", captured))
    return Captured(store.from_bytes(raw, what="captured"), opset, cuts, slots)


@cache
def made(name: str) -> Made:
    """The case ``name``; nobody changes it."""
    return Made(CASES[name], name)


@cache
def two_inputs() -> PackedHalves:
    """Halves of a net with a block that reads a second per-sample value.

    ``attach`` refuses such gates, so the model is made without it.
    """
    net, options = SteeredNet().eval(), AdaptorOptions(rank=4, pool=2)
    return split(AttachedModel(net, examine(net, (3, 8, 8)), "da3", 3, options))


def run_exact(model: ir.Model, images: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """All outputs of a model whose nodes run as they are written."""
    return Session(store.to_bytes(model), exact=True).run({"image": images.numpy()})


def names(model: ir.Model) -> set[str]:
    """The names of a model's nodes' outputs, branches included."""
    return {v.name or "" for node in walk(model.graph) for v in node.outputs}


def walk(graph: ir.Graph) -> list[ir.Node]:
    """All nodes of a graph and of the branches in it."""
    nodes: list[ir.Node] = []
    for node in graph:
        nodes.append(node)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                nodes += walk(attribute.as_graph())
    return nodes


def close(got: Any, want: Any, relative: float = 1e-4) -> bool:
    """Whether two arrays agree within the parity tolerance of the wanted range."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, (got.shape, want.shape)
    if not want.size:
        return True
    span = float(np.ptp(want)) or 1.0
    return float(np.abs(got - want).max()) <= relative * span
