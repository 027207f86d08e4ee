"""Make what is measured: a backbone artefact, domains on it, and the models they are compared with.

Rules of this file: everything goes through the library's own path (attach, split, link, compare
with PyTorch, pack). Domains are drawn from a seed, because neither time nor memory depends on what
a domain learnt. Their gates are decided at run time but never change (zero weight, every second
one open). So every domain costs the same, and a difference is never one between domains. This file
runs in a process of its own (:mod:`toolchain.bench.child`): no process that measures has torch in
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolchain import DISTRIBUTION, bundle
from toolchain.bench import graphs
from toolchain.bench.materials import Materials, read_index, write_index
from toolchain.bundle import BackboneArtefact
from toolchain.bundle.archive import BUNDLE_SUFFIX
from toolchain.bundle.linkage import STATIC_IF, SWAP_IF
from toolchain.core.confusion import Confusion
from toolchain.core.files import write_atomic
from toolchain.core.timing import Notify
from toolchain.export import manifests
from toolchain.export.check.reference import choose
from toolchain.export.graph import store
from toolchain.export.graph.link import link
from toolchain.export.graph.split import PackedHalves, split
from toolchain.export.linked import compare, link_domain, payloads, write_artefact
from toolchain.recipe import AdaptorOptions, DataSpec, Preprocessing, Recipe, TrainSpec
from toolchain.training.adapt import backbones
from toolchain.training.adapt.attached import AttachedModel, attach
from toolchain.training.adapt.checkpoint import INFO_FILE, Checkpoint
from toolchain.training.adapt.weights import load_backbone
from toolchain.training.data import ArraySplit
from toolchain.training.loop.evaluation import Evaluation
from toolchain.training.loop.models import save

# Whole models are some hundred megabytes each; more than these are not needed to take turns.
WHOLES = 3
# As many as a recipe asks for by default, so that a bundle has its usual size.
PICTURES = 8
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class MaterialsSetup:
    """What to make: ``side`` in pixels, ``domains`` of ``classes`` classes each."""

    backbone: str
    side: int
    domains: int
    classes: int = 196

    def made(self) -> dict[str, Any]:
        """Return what the files depend on."""
        return {**asdict(self), "toolchain": version(DISTRIBUTION), "torch": torch.__version__}


def make(work: Path, setup: MaterialsSetup, *, notify: Notify = lambda _: None) -> Materials:
    """Return the materials in the folder ``work``, made unless they are there already.

    Raises UnknownNameError for the backbone, AttachError, ParityError, StorageError.
    """
    if (ready := read_index(work, setup.made())) is not None:
        return ready
    model = _attached(setup, "da3")
    for index in reversed(range(setup.domains)):
        notify(f"domain {setup.domains - index} of {setup.domains}")
        # The first domain comes last, and is what the static graphs are linked from.
        made = _Maker(work, setup, model, index).made()
    plain = split(_attached(setup, "head"), cache=work / "cache")
    drawn = graphs.statics(made.halves, list(made.rates))
    drawn["plain"] = store.to_bytes(link(plain, STATIC_IF))
    names = [_name(index) for index in range(setup.domains)]
    materials = Materials(
        made.artefact.path,
        tuple(work / f"{name}{BUNDLE_SUFFIX}" for name in names),
        tuple(work / "whole" / f"{name}.onnx" for name in names[:WHOLES]),
        tuple(work / "shared" / f"{name}.onnx" for name in names),
        {name: _written(work, "static", name, data) for name, data in drawn.items()},
        setup.made(),
    )
    write_index(work, materials)
    return materials


@dataclass(frozen=True, slots=True)
class _Made:
    halves: PackedHalves
    artefact: BackboneArtefact
    rates: Mapping[str, float]


class _Maker:
    """One domain from drawn values to its files."""

    def __init__(self, work: Path, setup: MaterialsSetup, model: AttachedModel, index: int) -> None:
        self.work = work
        self.model = model
        self.index = index
        self.recipe = _recipe(setup, _name(index))
        self.classes = tuple(f"class {place}" for place in range(setup.classes))
        self._folder = work / "checkpoints" / self.recipe.domain

    def made(self) -> _Made:
        """Draw, split, link, compare and pack; then write what the domain is compared with."""
        rates = _draw(self.model, self.index)
        halves = split(self.model, cache=self.work / "cache")
        trained = self._checkpoint(rates)
        reference = choose(self.model, self._pictures(), self.recipe.preprocess, count=PICTURES)
        linked = link_domain(halves, trained)
        own = manifests.backbone(trained, halves, backbones.get(self.recipe.backbone).licence)
        artefact, _ = write_artefact(self.work, own, halves, replace=True)
        # One flavour tells that the drawn values arrived; all of them take long at full size.
        report = compare(
            linked,
            reference.golden,
            self.recipe.preprocess,
            artefact.path,
            linkages=[SWAP_IF],
            staged=False,
            threads=1,
        )
        manifest = manifests.domain(
            trained, self.recipe, halves, artefact=artefact, reference=reference, report=report
        )
        info = (self._folder / INFO_FILE).read_bytes()
        files = payloads(linked, reference.golden, self.recipe, info)
        bundle.pack(
            self.work / f"{self.recipe.domain}{BUNDLE_SUFFIX}", manifest, files, overwrite=True
        )
        self._compete(halves)
        return _Made(halves, artefact, rates)

    def _checkpoint(self, rates: Mapping[str, float]) -> Checkpoint:
        """Write the drawn values as training would; its figures are none."""
        evaluation = Evaluation(Confusion(len(self.classes), ()), 0.0, 1.0, dict(rates))
        self._folder.parent.mkdir(exist_ok=True)
        return save(self._folder, self.model, self.recipe, self.classes, evaluation, overwrite=True)

    def _pictures(self) -> ArraySplit:
        side = self.recipe.preprocess.size
        generator = np.random.default_rng(self.index)
        pictures = generator.integers(0, 256, (PICTURES, side, side, 3), np.uint8)
        return ArraySplit(self.recipe.domain, pictures, np.zeros(PICTURES, np.int64))

    def _compete(self, halves: PackedHalves) -> None:
        name = self.recipe.domain
        _written(self.work, "shared", name, graphs.shared(halves))
        if self.index < WHOLES:
            _written(self.work, "whole", name, graphs.whole(halves))


def _attached(setup: MaterialsSetup, method: str) -> AttachedModel:
    shipped = backbones.get(setup.backbone).weights == "shipped"
    return attach(
        load_backbone(setup.backbone, untrained_seed=None if shipped else 0),
        method=method,
        classes=setup.classes,
        input_shape=(3, setup.side, setup.side),
        **backbones.get(setup.backbone).joints,
    )


@torch.no_grad()
def _draw(model: AttachedModel, seed: int) -> dict[str, float]:
    """Draw the domain's tensors, every second gate open; return how often each gate is."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.domain.parameters():
        parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    rates: dict[str, float] = {}
    for name in model.sites:
        values = dict(model.domain[name].named_parameters())
        if "gate.bias" in values:
            rates[name] = float(len(rates) % 2 == 0)
            values["gate.weight"].zero_()
            values["gate.bias"].fill_(1.0 if rates[name] else -1.0)
    return rates


def _recipe(setup: MaterialsSetup, domain: str) -> Recipe:
    side = setup.side
    return Recipe(
        domain=domain,
        title="Drawn values, for measuring",
        licence="CC0-1.0",
        backbone=setup.backbone,
        weights=None,
        weights_sha256=None,
        data=DataSpec("folder", "drawn", None, None, 0),
        preprocess=Preprocessing(side, side, "none", "bilinear", "RGB", _MEAN, _STD),
        method="da3",
        adaptor=AdaptorOptions(),
        train=TrainSpec(1, 1, 0.01, 0.0, 0, 0.6, 0.0, ()),
        golden=PICTURES,
    )


def _name(index: int) -> str:
    return f"bench{index:02d}"


def _written(work: Path, kind: str, name: str, data: bytes) -> Path:
    folder = work / kind
    folder.mkdir(exist_ok=True)
    write_atomic(folder / f"{name}.onnx", data, overwrite=True)
    return folder / f"{name}.onnx"


def in_child(request: Mapping[str, Any], *, notify: Notify) -> dict[str, Any]:
    """Make materials in a process of its own; see :mod:`toolchain.bench.child`."""
    return make(Path(request["work"]), MaterialsSetup(**request["setup"]), notify=notify).to_json()
