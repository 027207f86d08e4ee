"""Toy domains from backbone to bundle: what the tests of check, export and runtime start from.

The backbone is the plain toy, registered through the entry-point group as a user's would be; a
domain's tensors are drawn, not trained, and its gates are open for half of the pictures.
``variants`` lists domains that differ from the first one in one thing each.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tests.support import shared

if TYPE_CHECKING:
    from toolchain.export.pipeline import ExportReport
    from toolchain.recipe import Recipe
    from toolchain.training.adapt.attached import AttachedModel
    from toolchain.training.data import DomainData

ENTRY = """
from toolchain.training.adapt.backbones import Backbone

def build():
    from tests.support import toys
    return toys.backbone("plain", 1)

TOY = Backbone(name="toy", title="toy", build=build, input_size=12, classifier="fc",
               licence="Apache-2.0", source="a test")
"""


@dataclass(frozen=True)
class Domain:
    """A checkpoint and all that an export of it needs."""

    recipe: Recipe
    checkpoint: Path
    model: AttachedModel
    data: DomainData


@dataclass(frozen=True)
class Exported:
    """A finished export; ``cache`` holds the captured structure, ``make`` makes the domain anew."""

    make: Callable[[], Domain]
    report: ExportReport
    cache: Path

    @cached_property
    def domain(self) -> Domain:
        """The domain that was exported, of which most tests need no more than the bundle."""
        return self.make()

    @property
    def bundle(self) -> Path:
        return self.report.bundle

    @property
    def backbone(self) -> Path:
        return self.report.backbone


def register(folder: Path) -> None:
    """Install the package that publishes the toy, as pip would."""
    info = folder / "toy_nets-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "toy_nets.py").write_text(ENTRY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy_nets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[da3.backbones]\ntoy = toy_nets:TOY\n")
    sys.path.append(str(folder))


def recipe(folder: Path) -> Recipe:
    """Drawn chirps at 12 px; the weights lie in ``folder``."""
    from tests.support.stripes import RECIPE
    from toolchain.recipe import DataSpec

    data = DataSpec("chirps", None, 8, 40, 0)
    weights, digest = "toy.safetensors", "sha256:" + "0" * 64
    return dataclasses.replace(
        RECIPE,
        domain="toy_chirps",
        backbone="toy",
        weights=weights,
        weights_sha256=digest,
        data=data,
        golden=6,
        folder=folder,
    )


def write_recipe(folder: Path, name: str = "toy", **train: Any) -> None:
    """Write the recipe, which trains in a second, and its weights into ``folder``.

    ``train``: fields of its training. A process finds the backbone by :func:`search_path`.
    """
    from toolchain.recipe import dump

    own = recipe(folder)
    train_spec = dataclasses.replace(own.train, **train)
    changed = dataclasses.replace(own, domain=name, train=train_spec, **write_weights(folder))
    (folder / f"{name}.yaml").write_text(dump(changed))


def write_weights(folder: Path) -> dict[str, Any]:
    """Write the toy's weights into ``folder``; return the fields of a recipe that name them."""
    from safetensors.torch import save_file

    from tests.support import toys
    from toolchain.core.digest import sha256

    path = folder / "toy.safetensors"
    save_file(toys.backbone("plain").state_dict(), path)
    return {"weights": path.name, "weights_sha256": sha256(path.read_bytes())}


def search_path() -> dict[str, str]:
    """The environment in which a process finds the registered toy where this one does."""
    return {"PYTHONPATH": os.pathsep.join(sys.path)}


def make_domain(
    folder: Path,
    *,
    name: str = "toy_chirps",
    method: str = "da3",
    seed: int = 0,
    weights: int = 0,
    always: str = "",
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Domain:
    """Write weights and a checkpoint into ``folder``; ``weights`` seeds the backbone.

    ``always``: a block whose gate no picture closes. ``changes``: further fields of the recipe.
    """
    from safetensors.torch import save_file
    from torch import from_numpy

    from tests.support import toys
    from toolchain.pictures.preprocess import normalise
    from toolchain.training import build, evaluate, save
    from toolchain.training.data import load

    chosen = dataclasses.replace(recipe(folder), domain=name, method=method, **changes)
    data = load(chosen)
    backbone = toys.backbone("plain", weights)
    save_file(backbone.state_dict(), folder / "toy.safetensors")
    pixels, _ = data.test.batch(range(len(data.test)))
    model = toys.scrambled(build(chosen, classes=len(data.classes), backbone=backbone), seed)
    toys.balanced(model, from_numpy(normalise(chosen.preprocess, pixels)))
    if always:
        model.domain.get_parameter(f"{always}.gate.bias").data.add_(500)
    evaluation = evaluate(model, data.test, chosen.preprocess)
    place = folder / f"checkpoint-{name}"
    save(place, model, chosen, data.classes, evaluation, head_accuracy=0.5)
    return Domain(chosen, place, model, data)


def exported_once(domain: Domain) -> Exported:
    """Return the export of the toy, which the first worker makes."""
    folder = shared.FOLDER / "exported"

    def made() -> ExportReport:
        from toolchain.export.pipeline import export

        return export(
            domain.recipe,
            checkpoint=domain.checkpoint,
            dist=folder / "dist",
            cache=folder / "cache",
        )

    return Exported(lambda: domain, shared.value_once("exported.report", made), folder / "cache")


def variants() -> dict[str, dict[str, Any]]:
    """What :func:`make_domain` makes the domains of the tests of the runtime from, by name.

    ``next`` and ``third`` are further releases of the first domain, on its name. The linked graph
    of ``digits``, ``bgr``, ``grey``, ``always`` and those two is the first one's. The rest have
    others; the slots of ``coarse`` have the shapes of the first one's. ``tuned``, ``masked``,
    ``normed`` and ``beside`` change the backbone.
    """
    from tests.support.stripes import RECIPE
    from toolchain.recipe import AdaptorOptions, DataSpec

    colours = {
        c: {"preprocess": dataclasses.replace(RECIPE.preprocess, colour=c)} for c in ("BGR", "L3")
    }
    plain = {"adaptor": AdaptorOptions()}
    every = AdaptorOptions(placement="all", rank=4, pool=2)
    few = partial(AdaptorOptions, placement="gateable")
    beside = few(rank=4, pool=2)
    digits = DataSpec("digits", None, 8, 40, 0)
    return {
        "first": {},
        "next": {"seed": 3},
        "third": {"seed": 4},
        "da2": {"method": "da2", "seed": 5},
        "head": {"method": "head", "seed": 6},
        "digits": {"seed": 7, "changes": {"data": digits}},
        "wide": {"seed": 8, "changes": {"adaptor": few(rank=6, pool=2)}},
        "every": {"seed": 9, "changes": {"adaptor": every}},
        "coarse": {"seed": 14, "changes": {"adaptor": few(rank=4, pool=4)}},
        "bgr": {"seed": 10, "changes": colours["BGR"]},
        "grey": {"seed": 11, "changes": colours["L3"]},
        "always": {"seed": 12, "always": "block00"},
        "foreign": {"seed": 13, "weights": 7},
        "tuned": {"method": "finetune", "seed": 15, "changes": plain},
        "masked": {"method": "piggyback", "seed": 16, "changes": plain},
        "normed": {"method": "bn", "seed": 17, "changes": plain},
        "beside": {"method": "lite_residual", "seed": 18, "changes": {"adaptor": beside}},
    }


class Fleet:
    """Domains of :func:`variants`, exported when they are first asked for; nobody changes them.

    One worker exports them for all. ``folder``: where this one makes what it needs of a domain.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Exported] = {}

    def __getitem__(self, name: str) -> Exported:
        if name not in self._made:
            self._made[name] = self._export(name)
        return self._made[name]

    def _export(self, name: str) -> Exported:
        @cache
        def domain() -> Domain:
            own = self._folder / name
            own.mkdir()
            return make_domain(own, **{"name": _name(name), **variants()[name]})

        def made() -> ExportReport:
            from toolchain.export.pipeline import export

            # A structure takes seconds to capture, and most domains have the same.
            with shared.locked("structures") as structures:
                return export(
                    domain().recipe,
                    checkpoint=domain().checkpoint,
                    dist=shared.FOLDER / "fleet" / name / "dist",
                    cache=structures,
                )

        report = shared.value_once(f"fleet.{name}", made)
        return Exported(domain, report, shared.FOLDER / "structures")


def _name(name: str) -> str:
    return "toy_chirps" if name in ("first", "next", "third") else f"toy_{name}"
