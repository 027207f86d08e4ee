"""What a second domain costs on a backbone that was exported before: time and bytes.

Rules of this file: an untrained ResNet-50 and 196 classes of drawn noise at 224 px stand in for a
user's data, because neither time nor bytes depend on what was learnt. The gates of a drawn domain
hardly depend on the picture, so the export forces their other states: the dearer case of checking.
Both domains go through ``toolchain.export.export`` into one folder, each in a process of its own
(``python -m benchmarks.second FOLDER DOMAIN``), so nothing is warm but the files on disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolchain.core.timing import Notify
from toolchain.recipe import Recipe, dump, load

DOMAINS = ("first", "second")


@dataclass(frozen=True, slots=True)
class SecondSetup:
    """A backbone, the size of its domains, and how often the second one is exported.

    One train picture is drawn for each of ``classes``, and one test picture for the first ``test``.
    """

    backbone: str = "resnet50"
    side: int = 224
    classes: int = 196
    test: int = 32
    runs: int = 3


def measure(work: Path, setup: SecondSetup, *, notify: Notify = lambda _: None) -> dict[str, Any]:
    """Export two domains into ``work/dist`` and return what the second one took.

    ``second_domain_s`` is wall-clock time of ``export`` (restore, split, link, check, pack) in the
    middle one of ``runs``; ``import_s`` that of importing torch and the toolchain, which comes
    before it once a process.
    """
    _prepare(work, setup, notify)
    notify("exporting the first domain")
    first = _in_fresh_process(work, "first")
    runs = []
    for turn in range(setup.runs):
        notify(f"exporting the second domain, {turn + 1} of {setup.runs}")
        runs.append(_in_fresh_process(work, "second"))
    second = sorted(runs, key=lambda run: run["export_s"])[len(runs) // 2]
    return {
        "second_domain_s": second["export_s"],
        "bundle_ratio": second["bundle_bytes"] / second["backbone_bytes"],
        **{key: second[key] for key in ("export_cpu_s", "import_s", "seconds")},
        **{key: second[key] for key in ("bundle_bytes", "backbone_bytes", "backbone_reused")},
        "runs_s": [run["export_s"] for run in runs],
        "first_domain_s": first["export_s"],
    }


def _prepare(work: Path, setup: SecondSetup, notify: Notify) -> None:
    """Write weights, pictures, recipes and checkpoints; torch is imported here alone."""
    from safetensors.torch import save_file

    from toolchain.core.digest import sha256
    from toolchain.training.adapt.weights import load_backbone

    notify("preparing two domains")
    (work / "domains").mkdir(parents=True)
    weights = work / "backbone.safetensors"
    save_file(load_backbone(setup.backbone, untrained_seed=0).state_dict(), weights)
    _draw(work / "pictures", setup)
    for seed, domain in enumerate(DOMAINS):
        text = _recipe(work, setup, domain, sha256(weights.read_bytes()))
        (work / f"{domain}.yaml").write_text(text)
        _checkpoint(work, load(work / f"{domain}.yaml"), seed)


def _draw(folder: Path, setup: SecondSetup) -> None:
    """Write an image folder: soft noise, one picture a class and split."""
    generator = np.random.default_rng(0)
    for part, count in (("train", setup.classes), ("test", setup.test)):
        for index in range(count):
            path = folder / part / f"class{index:03d}" / "picture.png"
            path.parent.mkdir(parents=True)
            coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((setup.side, setup.side)).save(path)


def _recipe(work: Path, setup: SecondSetup, domain: str, sha256: str) -> str:
    template = load(Path(__file__).with_name("second.yaml"))
    recipe = replace(
        template,
        domain=domain,
        backbone=setup.backbone,
        weights="backbone.safetensors",
        weights_sha256=sha256,
        data=replace(template.data, root=str(work.resolve() / "pictures")),
        preprocess=replace(template.preprocess, size=setup.side, resize=setup.side),
    )
    return dump(recipe)


def _checkpoint(work: Path, recipe: Recipe, seed: int) -> None:
    """Write a domain of drawn values: adaptors act, and gates differ between pictures."""
    import torch

    from toolchain.training.data import load as load_data
    from toolchain.training.loop.evaluation import evaluate
    from toolchain.training.loop.models import build, save

    data = load_data(recipe)
    model = build(recipe, classes=len(data.classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.domain.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    evaluation = evaluate(model, data.test, recipe.preprocess, batch=8)
    save(work / "domains" / recipe.domain, model, recipe, data.classes, evaluation, overwrite=True)


def _in_fresh_process(work: Path, domain: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.second", str(work.resolve()), domain]
    checkout = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=checkout)
    # Whatever libraries print comes before the document.
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _export(work: Path, domain: str) -> dict[str, Any]:
    started = time.perf_counter()
    from toolchain.export.pipeline import export

    imported, cpu = time.perf_counter(), time.process_time()
    report = export(
        load(work / f"{domain}.yaml"),
        checkpoint=work / "domains" / domain,
        dist=work / "dist",
        cache=work / "cache",
        overwrite=True,
    )
    return {
        "export_s": time.perf_counter() - imported,
        "export_cpu_s": time.process_time() - cpu,
        "import_s": imported - started,
        "seconds": report.seconds,
        "bundle_bytes": report.bundle_bytes,
        "backbone_bytes": report.backbone_bytes,
        "backbone_reused": report.backbone_reused,
        "parity": {f"{c.flavour}/{c.batch}": c.max_relative for c in report.parity.comparisons},
    }


if __name__ == "__main__":
    print(json.dumps(_export(Path(sys.argv[1]), sys.argv[2])))
