"""From a recipe to a finished training, in one call.

Rules of this file: it calls the parts in order and decides nothing. What can be refused without
work is refused first, and before torch is imported, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.core.timing import Notify
from toolchain.recipe import Recipe
from toolchain.training import data
from toolchain.training.adapt import backbones
from toolchain.training.data.splits import DomainData
from toolchain.training.loop.balance import class_weights
from toolchain.training.loop.destination import claimed, state_path
from toolchain.training.loop.devices import CPU, Device
from toolchain.training.loop.holdout import parted
from toolchain.training.loop.identity import refuse_changes_noted, training_document
from toolchain.training.loop.progress import Progress, Quiet

if TYPE_CHECKING:
    from toolchain.training.adapt.attached import AttachedModel
    from toolchain.training.loop.training import TrainReport
    from toolchain.training.memory.fit import Need


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
    progress = progress or Quiet()
    backbones.get(recipe.backbone).require_weights(recipe.weights_path)
    # Before pictures are read and PyTorch starts: nobody shall wait for a refusal.
    with claimed(out, resume=resume, overwrite=overwrite):
        if resume:
            refuse_changes_noted(state_path(out), training_document(recipe))
        pictures = _pictures(recipe, progress, notify)
        progress.phase("start", 0, 0)
        import torch

        from toolchain.training.loop.run import identity
        from toolchain.training.loop.training import train

        if threads is not None:
            torch.set_num_threads(threads)
        device.require()
        model = _untrained(recipe, pictures, memory, progress, notify)
        if resume:
            refuse_changes_noted(state_path(out), identity(model, pictures, recipe, device))
        needed = _needed(model, recipe, memory, progress, notify)
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


def _pictures(recipe: Recipe, progress: Progress, notify: Notify) -> DomainData:
    """Read the pictures; refuse parts and class weights that no training can have."""
    progress.phase("data", 0, 0)
    pictures = data.load(recipe)
    for line in pictures.notes:
        notify(f"pictures: {line}")
    own = parted(pictures, recipe).data
    class_weights(own.train.labels, own.classes, recipe.train)
    return pictures


def _untrained(
    recipe: Recipe,
    pictures: DomainData,
    memory: int | None,
    progress: Progress,
    notify: Notify,
) -> AttachedModel:
    """Build the model that the recipe describes; a method may search it by the pictures."""
    from toolchain.training.loop.models import build

    progress.phase("model", 0, 0)
    return build(
        recipe,
        classes=len(pictures.classes),
        data=pictures,
        memory=memory,
        tick=partial(progress.phase, "search"),
        notify=notify,
    )


def _needed(
    model: AttachedModel, recipe: Recipe, memory: int | None, progress: Progress, notify: Notify
) -> Need | None:
    """Say what the training needs; raises MemoryBudgetError where ``memory`` does not hold it."""
    from toolchain.training.memory import fit

    progress.phase("memory", 0, 0)
    needed, line = fit.need_and_line(model, recipe.train.batch)
    notify(line)
    if memory is not None:
        fit.within(model, recipe.train.batch, memory, needed=needed)
    return needed
