"""``python -m benchmarks.engine``: what engines take to build, and on a GPU what they do.

Rules of this file: domains are drawn (:mod:`toolchain.bench.domains`), and kits go through the
library's own path. Without a GPU NVIDIA's builder runs on the CPU, and the document lists what
needs a device as not run. The document goes into JSON, its tables to the end of docs/results.md.
Nobody types a figure.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import onnx_ir as ir

from benchmarks import refit, results
from toolchain import bundle, recipe
from toolchain.bench import domains, engines, machine
from toolchain.bench.materials import Materials
from toolchain.bundle.linkage import FLAVOURS, Linkage
from toolchain.bundle.slots import slot_arrays
from toolchain.core.digest import sha256
from toolchain.core.files import write_atomic
from toolchain.core.words import PRECISIONS, Precision
from toolchain.device import build as pipeline
from toolchain.device.boards.cuda import gpus, open_cuda
from toolchain.device.boards.locate import here
from toolchain.device.boards.machine import read_machine
from toolchain.device.boards.target import Target, find
from toolchain.device.engine.build import BuildOptions
from toolchain.device.engine.build import build as build_plan
from toolchain.device.engine.features import TensorRT, load
from toolchain.device.engine.kit import ClassProfile, Kit
from toolchain.device.engine.parse import ParsedNetwork, parse
from toolchain.export.emit import calibrate
from toolchain.export.emit.kits import KitSource, write_kits
from toolchain.export.emit.models import KitOrder, emit
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves, read_halves
from toolchain.export.graph.link import link
from toolchain.export.graph.names import SLOTS_FILE, WEIGHTS_FILE
from toolchain.export.pipeline import export

SIDES = {"resnet20": 32, "resnet26": 64, "resnet50": 224, "mobilenet_v2": 224}
QUICK = {"resnet20": 32}
WITHOUT = "desktop-rtx1.7"
SAMPLES = 8
NOTHING_RAN = (
    "anything on a GPU (parity, skipping, swapping, latency, refitting, trtexec), as this machine "
    "has none that is ready"
)
CLASSES = 196


@dataclass(frozen=True)
class DrawnDomains:
    """A backbone with two drawn domains, as kits are made from them."""

    materials: Materials
    split: Halves
    slots: dict[str, Any]
    side: int

    def kits(self, target: Target, precision: Precision, folder: Path) -> list[Kit]:
        """Write and return the kits of every flavour."""
        first = self.materials.open()
        artefact = bundle.open_backbone(self.materials.backbone)
        ranges = self._ranges() if precision == "int8" else {}
        order = KitOrder(target, precision, FLAVOURS)
        source = KitSource(
            manifest=first.manifest,
            backbone=artefact.manifest,
            slots=self.slots,
            graph=sha256(first.blob("swap-if.onnx")),
        )
        models = emit(self.split, order, rates=_rates(first), ranges=ranges)
        kits = write_kits(models, source, folder, release=first.manifest_digest)
        return [kit for kit, _ in kits]

    def _ranges(self) -> dict[str, float]:
        shape = (SAMPLES, 3, self.side, self.side)
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        return dict(calibrate.ranges(self.split, self.slots, images).amax)


def _rates(domain: bundle.Bundle) -> dict[str, float]:
    return {b.name: b.rate for b in domain.manifest.gates.blocks if b.rate is not None}


def draw_domains(name: str, side: int, work: Path) -> DrawnDomains:
    """Draw two domains on a backbone and read their halves, tensors in memory."""
    work.mkdir()
    materials = domains.make(work, domains.MaterialsSetup(name, side, 2, CLASSES), notify=_tell)
    first = materials.open()
    backbone = store.read_graph(materials.backbone / "backbone.onnx")
    store.load_tensors(backbone, WEIGHTS_FILE, (materials.backbone / WEIGHTS_FILE).read_bytes())
    domain = store.from_bytes(first.blob("domain.onnx"), what="domain.onnx")
    store.load_tensors(domain, SLOTS_FILE, first.blob(SLOTS_FILE))
    slots = dict(slot_arrays(first.blob(SLOTS_FILE)))
    return DrawnDomains(materials, read_halves(backbone, domain), slots, side)


def measure(sides: dict[str, int], trained: Path, *, rounds: int) -> dict[str, Any]:
    """Return the document: builds of every backbone, and what ran on a device, if there is one."""
    started, board = time.monotonic(), read_machine()
    target = here(board) if gpus() else None
    builds: list[dict[str, Any]] = []
    ran: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="da3-engine-") as folder:
        for name, side in sides.items():
            one = draw_domains(name, side, Path(folder) / name)
            for precision in PRECISIONS:
                _tell(f"{name} {precision}")
                kits = one.kits(target or find(WITHOUT), precision, Path(folder) / name)
                builds += _builds(name, precision, kits)
                if target is not None:
                    ran += _ran(name, precision, kits, one, Path(folder), rounds)
            if name == "resnet50" or len(sides) == 1:
                against = _refit(name, one)
                plain = _trtexec(one, board.trtexec, Path(folder)) if board.trtexec else None
        accuracy = list(_accuracy(Path(folder), trained))
    return {
        "builds": builds,
        "refit": against,
        "accuracy": accuracy,
        "trtexec_plain_ms": plain,
        "ran": ran,
        "not_run": [] if target else [NOTHING_RAN],
        "target": target.name if target else WITHOUT,
        "machine": machine.machine(),
        "versions": {**machine.versions(), load().name: load().build},
        "gpus": [asdict(gpu) for gpu in gpus()],
        "took_s": time.monotonic() - started,
    }


def _accuracy(folder: Path, trained: Path) -> Iterator[dict[str, Any]]:
    """Export every sample domain that is trained and tell what each precision costs it."""
    for checkpoint in sorted(path for path in trained.glob("*") if path.is_dir()):
        _tell(f"accuracy of {checkpoint.name}")
        orders = [KitOrder(find(WITHOUT), precision, ("swap",)) for precision in PRECISIONS]
        report = export(
            recipe.load(recipe.find(checkpoint.name)),
            checkpoint=checkpoint,
            dist=folder / "dist" / checkpoint.name,
            orders=orders,
        )
        for item in report.kits:
            yield {"domain": checkpoint.name, **asdict(item.plan)}


def _trtexec(one: DrawnDomains, program: str, folder: Path) -> float | None:
    """Return what NVIDIA's own program needs for the plain backbone, median ms on the GPU."""
    path = folder / "plain.onnx"
    model = store.from_bytes(one.materials.statics["plain"].read_bytes(), what="plain")
    weights = (one.materials.backbone / WEIGHTS_FILE).read_bytes()
    store.load_tensors(model, WEIGHTS_FILE, weights)
    for name, value in model.graph.initializers.items():
        # The head's values were not kept, and change no time.
        if isinstance(value.const_value, ir.ExternalTensor):
            shape = value.const_value.shape.numpy()
            value.const_value = ir.Tensor(np.zeros(shape, np.float32), name=name)
    path.write_bytes(store.to_bytes(model))
    # Without TF32, as our engines are built.
    done = subprocess.run(
        [program, f"--onnx={path}", "--noTF32"], capture_output=True, text=True, check=False
    )
    match = re.search(r"GPU Compute Time:.*median = ([0-9.]+) ms", done.stdout)
    return float(match[1]) if match else None


def _builds(name: str, precision: str, kits: Sequence[Kit]) -> Iterator[dict[str, Any]]:
    for kit in kits:
        sizes = {entry.name: entry.size for entry in kit.manifest.files}
        for item in pipeline.check(kit.path).flavours:
            yield {
                "backbone": name,
                "precision": precision,
                "flavour": item.flavour,
                "models": len(item.pieces),
                "conditionals": sum(piece.conditionals for piece in item.pieces),
                "boundaries": sum(piece.boundaries for piece in item.pieces),
                "onnx_bytes": sum(sizes[piece.file] for piece in item.pieces),
                "plan_bytes": sum(piece.plan_bytes for piece in item.pieces),
                "build_s": sum(piece.seconds for piece in item.pieces),
            }


def _ran(
    name: str, precision: str, kits: Sequence[Kit], one: DrawnDomains, folder: Path, rounds: int
) -> Iterator[dict[str, Any]]:
    """Build on the device, run both domains, prove skipping."""
    for kit in kits:
        report = pipeline.build(kit.path, folder / "engines")
        for item in report.flavours:
            assert item.engine is not None
            bundles = one.materials.bundles[: 1 if item.flavour == "static" else 2]
            measured = engines.measure(item.engine, bundles, rounds=rounds, notify=_tell)
            yield {"backbone": name, "precision": precision, "flavour": item.flavour} | measured


def _refit(name: str, one: DrawnDomains) -> dict[str, Any]:
    """Compare slots as inputs with slots as weights that can be refitted one by one."""
    trt = load()
    model = store.to_bytes(link(one.split, Linkage("static", "if")))
    network = parse(trt, model, what="slots as weights")
    coverage = refit.mark(network, one.slots)
    figures = {
        "backbone": name,
        "slots": len(one.slots),
        "known": len(coverage.known),
        "layers": network.definition.num_layers,
    }
    return figures | (_refitted(trt, network, one) if gpus() else {})


def _refitted(trt: TensorRT, network: ParsedNetwork, one: DrawnDomains) -> dict[str, Any]:
    """Build a refittable engine on the device and time how long its slots take to exchange."""
    free_bytes, _ = open_cuda().memory()
    options = BuildOptions("fp32", ClassProfile(1, CLASSES, 1000), refit=True)
    built = build_plan(network, options, free_bytes=free_bytes)
    engine = trt.module.Runtime(trt.logger).deserialize_cuda_engine(built.plan)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        refit.refit(trt, engine, one.slots)
        seconds.append(time.perf_counter() - started)
    return {"plan_bytes": len(built.plan), "build_s": built.seconds, "refit_s": median(seconds)}


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@click.command()
@click.option("--quick", is_flag=True, help="One small backbone: to see that it runs.")
@click.option("--json", "json_path", type=Path, default=Path("build/bench/engine.json"))
@click.option("--results", "results_path", type=Path, default=Path("docs/results.md"))
@click.option("--domains", "domains_path", type=Path, default=Path("build/domains"))
@click.option("--redraw", is_flag=True, help="Write the tables again from the JSON file.")
def main(
    quick: bool, json_path: Path, results_path: Path, domains_path: Path, redraw: bool
) -> None:
    """Measure engines: what building takes, and on a GPU what they do."""
    if not redraw:
        document = measure(QUICK if quick else SIDES, domains_path, rounds=5 if quick else 40)
        json_path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, default=asdict).encode() + b"\n"
        write_atomic(json_path, text, overwrite=True)
    document = json.loads(json_path.read_text())
    section = results.engines(document)
    if quick:
        print("\n".join(section) + "\n")
        return
    results.put(results_path, section)


if __name__ == "__main__":
    main()
