"""From a recipe to a finished training, in one call.

Rules of this file: it calls the parts in order and decides nothing. What can be refused without
work is refused first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from toolchain.core.timing import Notify
from toolchain.recipe import Recipe
from toolchain.training import data
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.data.splits import DomainData
from toolchain.training.loop.destination import claimed
from toolchain.training.loop.devices import Device
from toolchain.training.loop.models import build
from toolchain.training.loop.progress import Progress, Quiet
from toolchain.training.loop.training import CPU, TrainReport, train
from toolchain.training.memory import fit


def train_recipe(
    recipe: Recipe,
    *,
    out: Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    notify: Notify = lambda _: None,
    threads: int | None = None,
    memory: int | None = None,
    check: Callable[[AttachedModel, DomainData], None] | None = None,
    log: Path | None = None,
    device: Device = CPU,
) -> TrainReport:
    """Load the recipe's pictures, build its model and train it into the checkpoint ``out``.

    ``notify`` gets lines before the first step: what the training will take in memory, and what was
    done to the backbone's weights.
    ``threads``: PyTorch's threads from then on, for the whole process. ``memory``: bytes, as
    ``resume``, ``overwrite``, ``progress``, ``log`` and ``device`` as in :func:`train`. ``check``
    gets the untrained model and the pictures before the first step, and may raise to refuse them
    (:func:`toolchain.export.rehearse`). Raises as :func:`train`, :func:`build` and the loader of
    the pictures.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device.require()
    progress = progress or Quiet()
    # Before pictures are read and a search runs: nobody shall wait for a refusal.
    with claimed(out, resume=resume, overwrite=overwrite):
        progress.phase("data", 0, 0)
        pictures = data.load(recipe)
        for line in pictures.notes:
            notify(f"pictures: {line}")
        progress.phase("model", 0, 0)
        model = build(
            recipe,
            classes=len(pictures.classes),
            data=pictures,
            tick=partial(progress.phase, "search"),
            notify=notify,
        )
        progress.phase("memory", 0, 0)
        needed, line = fit.need_and_line(model, recipe.train.batch)
        notify(line)
        if check is not None:
            progress.phase("trial", 0, 0)
            check(model, pictures)
        return train(
            model,
            pictures,
            recipe,
            out=out,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            memory=memory,
            log=log,
            device=device,
            needed=needed,
            alone=True,
        )
