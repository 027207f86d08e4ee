"""Train a domain: adaptors, gates and head on a frozen backbone.

Rules of this file: only ``model.domain`` changes, and the backbone's digest is compared at the end.
Every draw is a function of (seed, step), so an interrupted training that is resumed ends in the
same bits as one that never stopped (same torch, same number of threads). It never prints: progress
goes to a ``Progress``. The model decides what layers keep for the backward pass (``lean``).

AdamW (Loshchilov and Hutter, ICLR 2019) minimises cross-entropy plus the budget term (``loss``)
over one cycle (``schedule``). The head starts from the head-only baseline or from zero, as the
method says; the checkpoint notes the baseline's accuracy beside the domain's. After each epoch the
validation part is looked at (``holdout``), and the weights of the best epoch are kept. The test
split is looked at once, at the end.

Law: ``train`` interrupted anywhere and resumed equals ``train``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolchain.bundle.limits import require_packable
from toolchain.core.errors import TrainingError
from toolchain.recipe import Recipe
from toolchain.training.adapt.attached import OWN, AttachedModel, domain_state
from toolchain.training.adapt.checkpoint import Checkpoint, History
from toolchain.training.adapt.loss import training_loss
from toolchain.training.data.splits import DomainData, spread
from toolchain.training.loop import models
from toolchain.training.loop.augment import Epoch, augmented, draw
from toolchain.training.loop.baseline import probe
from toolchain.training.loop.destination import best_path, claimed, remove_state, state_path
from toolchain.training.loop.devices import CPU, Device, device_of, placed
from toolchain.training.loop.evaluation import Evaluation, as_tensors
from toolchain.training.loop.holdout import RowsOfSplit
from toolchain.training.loop.identity import differences
from toolchain.training.loop.interruption import interruption
from toolchain.training.loop.logs import Log
from toolchain.training.loop.meter import RemainingTime
from toolchain.training.loop.progress import Progress, Quiet
from toolchain.training.loop.run import Run
from toolchain.training.loop.schedule import budget_at
from toolchain.training.loop.state import load_best, load_state
from toolchain.training.loop.verdict import conclusion, verdict
from toolchain.training.memory.fit import Need, need_and_line, within
from toolchain.training.memory.head import ROOM

SAVE_EVERY_S = 300.0
GATE_PICTURES = 2000
_PROBES = 3  # the number of its random stream, beside those of ``augment``


@dataclass(frozen=True, slots=True)
class TrainReport:
    """A finished training: the checkpoint in ``folder``, and its evaluation on the test split.

    ``history``: what each epoch reached, and which one was kept. ``steps`` counts the steps of this
    call alone; ``seconds`` is its wall-clock time. ``fault``: why nobody should use the domain
    unlooked at (DivergedError, BelowHeadError), None if it is as good as its head alone.
    ``conclusion``: for people, what it reached, and what to try next.
    """

    folder: Path
    checkpoint: Checkpoint
    evaluation: Evaluation
    history: History
    steps: int
    seconds: float
    fault: TrainingError | None
    conclusion: str


def train(
    model: AttachedModel,
    data: DomainData,
    recipe: Recipe,
    *,
    out: Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    save_every_s: float = SAVE_EVERY_S,
    memory: int | None = None,
    needed: Need | None = None,
    alone: bool = False,
    log: Path | None = None,
    device: Device = CPU,
) -> TrainReport:
    """Train ``model``'s domain as ``recipe.train`` says and write the checkpoint ``out``.

    The state for ``resume`` lies beside ``out`` (``state.state_path``). It is written before the
    first step, after every epoch, every ``save_every_s`` seconds and at Ctrl-C, SIGTERM or SIGHUP,
    and removed at the end. A missing parent of ``out`` is made. ``memory``: the bytes that training
    may take beside frozen weights and pictures (``memory.fit``), in every phase; ``needed`` is what
    it needs, if the caller has counted that. ``alone``: the caller has ``destination.claimed`` the
    place. ``log``: a folder for figures of each epoch (``logs``). ``device``: where it computes;
    the model is there while it trains.

    Raises:
        MemoryBudgetError: ``memory`` does not hold it; the fix says what it would hold.
        ExistsError: ``out``, or a training that waits to be resumed, is there, and neither
            ``resume`` nor ``overwrite`` was asked for.
        LockedError: another process trains into ``out``; nothing of it was touched.
        UsageError: the domain is larger than any bundle, as
            :func:`toolchain.bundle.limits.require_packable` says.
        DivergedError: a loss or weights that are not finite (the last good state stays).
        TrainingError: a signal that asks to stop (after the step was finished and saved); memory
            that ran out (the last good state stays); ``resume`` with another recipe, backbone or
            data, each difference named, or with nothing to resume; a model whose method, classes or
            input size are not those of recipe and data.

    """
    started = time.monotonic()
    device.require()
    _check_fit(model, data, recipe)
    room = _room(model, recipe, memory, needed)
    place = nullcontext() if alone else claimed(out, resume=resume, overwrite=overwrite)
    with place, interruption() as interrupted, placed(model, device):
        writer = None if log is None else Log(log)
        run = Run(model, data, recipe, out, progress or Quiet(), interrupted, device)
        with _left_ready(run):
            first = _begin(run, resume=resume, room=room)
            _loop(run, writer, save_every_s)
            evaluation, gates = _tested(run)
        checkpoint = _finished(run, evaluation, gates, overwrite=overwrite or resume)
    if interrupted:  # too late to be saved: whoever called shall stop all the same
        raise KeyboardInterrupt
    return _report(run, checkpoint, evaluation, first, time.monotonic() - started)


def _room(model: AttachedModel, recipe: Recipe, memory: int | None, needed: Need | None) -> int:
    """Return the bytes that the head's fit may take: as many as a step needs.

    Raises MemoryBudgetError if the training needs more than ``memory`` bytes.
    """
    needed = needed or need_and_line(model, recipe.train.batch)[0]
    if memory is not None:
        within(model, recipe.train.batch, memory, needed=needed)
    return needed.total if needed else ROOM


@contextmanager
def _left_ready(run: Run) -> Iterator[None]:
    """Leave the model as evaluation wants it, whether the training inside ends or stops."""
    try:
        yield
    finally:
        run.progress.close()
        run.model.generator, run.model.forced = None, {}
        run.model.train(False)
        for _, gate in run.model.gates():
            gate.fold()


def _begin(run: Run, *, resume: bool, room: int) -> int:
    """Go on from the state on disk, or fit the head in ``room`` bytes; return the steps done."""
    out = run.out
    if resume:
        run.resume(load_state(state_path(out)))
        return run.step
    remove_state(out)  # overwriting was asked for
    with run.memory_watched():
        baseline = probe(
            run.model,
            run.parts.data,
            run.recipe.preprocess,
            batch=run.batch_without_gradients,
            room=room,
            folder=out.parent,
            class_weights=run.class_weights,
            tick=run.tick("head"),
        )
    run.start(baseline)
    run.save()
    return 0


def _tested(run: Run) -> tuple[Evaluation, Evaluation]:
    """Put the best epoch's weights into the model, and look at the test split.

    The second evaluation is one of training pictures. How often gates are open decides what a
    static graph leaves out, and no such choice is made by the test split.
    """
    history, model = run.history(), run.model
    if history.epoch < len(history.epochs):
        load_best(best_path(run.out), model, history.epoch)
    evaluation = gates = run.evaluated(run.data.test, "test")
    if model.gated:
        rows = spread(run.data.train.labels, GATE_PICTURES, run.recipe.data.seed)
        gates = run.evaluated(RowsOfSplit(run.data.train, rows, "gates"), "gates")
    return evaluation, gates


def _finished(
    run: Run, evaluation: Evaluation, gates: Evaluation, *, overwrite: bool
) -> Checkpoint:
    """Write the checkpoint, and then remove the state, which nobody needs any more."""
    run.check_frozen()
    checkpoint = models.save(
        run.out,
        run.model,
        run.recipe,
        run.data.classes,
        evaluation,
        head_accuracy=run.head_accuracy,
        gates=gates,
        history=run.history(),
        overwrite=overwrite,
    )
    remove_state(run.out)
    return checkpoint


def _report(
    run: Run, checkpoint: Checkpoint, evaluation: Evaluation, first: int, seconds: float
) -> TrainReport:
    """Return what the training reached; ``first``: the steps that were done before this call."""
    return TrainReport(
        folder=run.out,
        checkpoint=checkpoint,
        evaluation=evaluation,
        history=run.history(),
        steps=run.step - first,
        seconds=seconds,
        fault=verdict(run.recipe, evaluation, run.head_accuracy, run.step),
        conclusion=conclusion(
            run.recipe,
            evaluation,
            run.head_accuracy,
            run.history(),
            steps=run.step,
            classes=run.data.classes,
        ),
    )


def _check_fit(model: AttachedModel, data: DomainData, recipe: Recipe) -> None:
    side = recipe.preprocess.size
    faults = differences(
        {"method": model.method, "classes": model.classes, "size": model.anatomy.input_shape[1:]},
        {"method": recipe.method, "classes": len(data.classes), "size": (side, side)},
        ("in the model", "wanted"),
    )
    if faults:
        raise TrainingError(
            f"expected a model for this recipe and data, got another: {'; '.join(faults)}",
            fix="attach with the recipe's method and size and the data's number of classes",
        )
    # Asked now: hours later the export could only refuse it.
    require_packable(
        blocks=[name for name, _ in model.anatomy.named_sites()],
        slots={
            name: (str(tensor.dtype).removeprefix("torch."), tensor.shape)
            for name, tensor in domain_state(model).items()
            if not name.startswith(f"{OWN}.")
        },
        classes=data.classes,
    )
    model.backbone.requires_grad_(False)


def _loop(run: Run, log: Log | None, save_every_s: float) -> None:
    epochs, progress = run.recipe.train.epochs, run.progress
    clock = RemainingTime(run.step, epochs=epochs, steps_per_epoch=run.steps_per_epoch)
    saved_at = time.monotonic()
    spec, count = run.recipe.train, len(run.train)
    while not run.finished:
        run.tick("steps")(run.step, run.steps)
        # A resumed epoch draws the same order again and starts at its place in it.
        epoch = len(run.epochs)
        drawn = draw(spec.seed, epoch, count, spec.augment)
        while run.step < (epoch + 1) * run.steps_per_epoch:
            with run.memory_watched(saves=True):
                _step(run, drawn)
            progress.step(clock.status(run.step, run.meter))
            run.stop_if_asked()
            if time.monotonic() - saved_at > save_every_s:
                run.save()
                saved_at = time.monotonic()
        status = clock.status(run.step, run.meter)
        figures = run.end_epoch()
        run.save()
        saved_at = time.monotonic()
        best = None if run.best is None else run.best[0]
        if log is not None:
            log.epoch(run.epochs, best)
        progress.epoch(replace(status, figures=figures, best=best))


def _step(run: Run, drawn: Epoch) -> None:
    """Do one step of the optimiser; ``run.step`` counts it only once it is whole."""
    model, spec = run.model, run.recipe.train
    images, labels = _batch(run, drawn)
    done = run.step / run.steps
    model.train()
    model.generator = _probes(spec.seed, run.step)
    budget = budget_at(done, spec.budget)
    model.forced = _all_open(model, len(images)) if budget is None else {}
    with run.device.arithmetic():
        trace = model.trace(images, maps=False)
    model.forced = {}  # the validation part has batches of another size
    assert trace.logits is not None
    trace.logits = trace.logits.float()  # the loss is always float32's
    share = model.executed_share(trace)
    # Without gates the share is fixed.
    weight = spec.budget_weight if trace.opened and budget is not None else 0.0
    loss = training_loss(
        trace.logits,
        labels,
        share,
        budget=budget or 1.0,
        weight=weight,
        classes=run.class_weights,
    )
    # Before the update: a loss that is not finite would put NaN into every tensor.
    run.check_finite(loss)
    run.set_rates(done)
    run.optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    run.updating = True
    run.optimiser.step()
    for _, gate in model.gates():
        gate.stepped()
    run.updating = False
    run.step += 1
    run.meter.add(loss, labels, share, trace)


def _batch(run: Run, drawn: Epoch) -> tuple[Tensor, Tensor]:
    size = run.recipe.train.batch
    place = run.step % run.steps_per_epoch
    rows = drawn.order[place * size : (place + 1) * size]
    pictures, labels = run.train.batch(rows)
    changed = augmented(pictures, rows, drawn)
    return as_tensors(run.recipe.preprocess, changed, labels, run.device.name)


def _all_open(model: AttachedModel, pictures: int) -> dict[str, Tensor]:
    opened = torch.ones(pictures, 1, device=device_of(model))
    return {name: opened for name, _ in model.gates()}


def _probes(seed: int, step: int) -> torch.Generator:
    # A generator of its own per step: the number of steps is all that a resume needs to know.
    word = np.random.SeedSequence([seed, _PROBES, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word))
