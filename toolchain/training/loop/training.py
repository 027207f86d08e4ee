"""Train a domain: adaptors, gates and head on a frozen backbone.

Rules of this file: only ``model.domain`` changes, and the backbone's digest is compared at the end.
Every draw is a function of (seed, step), so an interrupted training that is resumed ends in the
same bits as one that never stopped (same torch, same number of threads). It never prints: progress
goes to a ``Progress``. The model decides what layers keep for the backward pass (``lean``).

Law: ``train`` interrupted anywhere and resumed equals ``train``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.bundle.limits import require_packable
from toolchain.core import digest
from toolchain.core.canonical import canonical_json
from toolchain.core.errors import DivergedError, StorageError, TrainingError
from toolchain.core.files import exists
from toolchain.recipe import Recipe
from toolchain.training.adapt.attached import (
    HEAD,
    OWN,
    AttachedModel,
    domain_state,
    weights_digest,
)
from toolchain.training.adapt.checkpoint import Checkpoint, EpochFigures, History
from toolchain.training.adapt.loss import training_loss
from toolchain.training.adapt.methods import REGISTRY
from toolchain.training.adapt.overrides import Selection
from toolchain.training.data.splits import DomainData, Split, spread
from toolchain.training.loop import models
from toolchain.training.loop.augment import Epoch, augmented, draw
from toolchain.training.loop.balance import class_weights
from toolchain.training.loop.baseline import Probe, probe
from toolchain.training.loop.destination import claimed, remove_state
from toolchain.training.loop.devices import Device, placed
from toolchain.training.loop.evaluation import BATCH, Evaluation, as_tensors, evaluate
from toolchain.training.loop.exhausted import exhausted, is_exhaustion
from toolchain.training.loop.holdout import Parts, Rows, parted, score
from toolchain.training.loop.identity import data_digest, training_document
from toolchain.training.loop.interruption import Interruption, interruption
from toolchain.training.loop.logs import Log
from toolchain.training.loop.meter import Meter, RemainingTime
from toolchain.training.loop.progress import Phase, Progress, Quiet, Tick
from toolchain.training.loop.schedule import GATE_LR_FACTOR, lr_factor, noise_scale
from toolchain.training.loop.state import (
    State,
    best_path,
    differences,
    finite_domain,
    load_best,
    load_state,
    optimiser_tensors,
    restore_state,
    save_best,
    save_state,
    state_path,
)
from toolchain.training.loop.verdict import verdict
from toolchain.training.memory.fit import Need, need_and_line, within
from toolchain.training.memory.head import ROOM

SAVE_EVERY_S = 300.0
CPU = Device()
GATE_PICTURES = 2000
_GATE_NOISE = 3  # the number of its random stream, beside those of ``augment``


@dataclass(frozen=True, slots=True)
class TrainReport:
    """A finished training: the checkpoint in ``folder``, and its evaluation on the test split.

    ``history``: what each epoch reached, and which one was kept. ``steps`` counts the steps of this
    call alone; ``seconds`` is its wall-clock time. ``fault``: why nobody should use the domain
    unlooked at (DivergedError, BelowHeadError), None if it is as good as its head alone.
    """

    folder: Path
    checkpoint: Checkpoint
    evaluation: Evaluation
    history: History
    steps: int
    seconds: float
    fault: TrainingError | None


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

    AdamW (Loshchilov and Hutter, ICLR 2019) minimises cross-entropy plus the budget term (``loss``)
    over one cycle. The head starts from the head-only baseline; the checkpoint notes the baseline's
    accuracy beside the domain's. After each epoch the validation part is looked at (``holdout``),
    and the weights of the best epoch are kept. The test split is looked at once, at the end. The
    state for ``resume`` lies beside ``out`` (``state.state_path``). It is written before the first
    step, after every epoch, every ``save_every_s`` seconds and at Ctrl-C, SIGTERM or SIGHUP, and
    removed at the end. A missing parent of ``out`` is made. ``memory``: the bytes that training may
    take beside frozen weights and pictures (``memory.fit``), in every phase; ``needed`` is what it
    needs, if the caller has counted that. ``alone``: the caller has ``destination.claimed`` the
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
    needed = needed or need_and_line(model, recipe.train.batch)[0]
    if memory is not None:
        within(model, recipe.train.batch, memory, needed=needed)
    place = nullcontext() if alone else claimed(out, resume=resume, overwrite=overwrite)
    with place, interruption() as interrupted, placed(model, device):
        writer = None if log is None else Log(log)
        run = _Run(model, data, recipe, out, progress or Quiet(), interrupted, device)
        try:
            first = _begin(run, resume=resume, room=needed.total if needed else ROOM)
            _loop(run, writer, save_every_s)
            evaluation, gates = _tested(run)
        finally:
            run.progress.close()
            # Stopped or finished, the model leaves as evaluation wants it.
            model.generator, model.noise_scale = None, 1.0
            model.train(False)
        run.check_frozen()
        checkpoint = models.save(
            out,
            model,
            recipe,
            data.classes,
            evaluation,
            head_accuracy=run.head_accuracy,
            gates=gates,
            history=run.history(),
            overwrite=overwrite or resume,
        )
        remove_state(out)
    if interrupted:  # too late to be saved: whoever called shall stop all the same
        raise KeyboardInterrupt
    return TrainReport(
        folder=out,
        checkpoint=checkpoint,
        evaluation=evaluation,
        history=run.history(),
        steps=run.step - first,
        seconds=time.monotonic() - started,
        fault=verdict(recipe, evaluation, run.head_accuracy),
    )


def _begin(run: _Run, *, resume: bool, room: int) -> int:
    """Go on from the state on disk, or fit the head in ``room`` bytes; return the steps done."""
    out = run.out
    # The state is removed last, so without it a checkpoint is whole.
    if resume and exists(out) and not exists(state_path(out)):
        raise TrainingError(
            f"expected a training to resume, got a finished one at {out}",
            fix="use it as it is, or ask for overwriting to train again",
        )
    if resume:
        run.resume(load_state(state_path(out)))
        return run.step
    remove_state(out)  # overwriting was asked for
    with _memory_watched(run):
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


def _tested(run: _Run) -> tuple[Evaluation, Evaluation]:
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
        gates = run.evaluated(Rows(run.data.train, rows, "gates"), "gates")
    return evaluation, gates


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


@dataclass
class _Run:
    """One training: what it works on and the number of finished steps.

    ``epochs``: what each finished epoch reached. ``best``: the best of them, from 1, and its score.
    ``started``: it has a head, so there is a state worth keeping. ``updating``: the optimiser is at
    work, so some tensors may be a step ahead of others.
    """

    model: AttachedModel
    data: DomainData
    recipe: Recipe
    out: Path
    progress: Progress
    interrupted: Interruption
    device: Device
    step: int = 0
    head_accuracy: float = 0.0
    epochs: list[EpochFigures] = field(default_factory=list)
    best: tuple[int, float] | None = None
    meter: Meter = field(default_factory=Meter)
    started: bool = False
    updating: bool = False
    parts: Parts = field(init=False)
    class_weights: Tensor | None = field(init=False)
    identity: dict[str, Any] = field(init=False)
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        """Note what the training depends on, so that a resume can compare it."""
        self.optimiser = _optimiser(self.model.domain, self.recipe)
        self.parts = parted(self.data, self.recipe)
        weights = class_weights(self.train.labels, self.data.classes, self.recipe.train)
        place = self.device.name
        self.class_weights = None if weights is None else torch.from_numpy(weights).to(place)
        self.identity = training_document(self.recipe) | {
            "backbone's weights_digest": weights_digest(self.model),
            "data's digest": data_digest(self.data),
            "model's method": self.model.method,
            "model's options": asdict(self.model.options),
            "model's classes": self.model.classes,
            "model's selection": _digested(self.model.selection),
            "training's device": asdict(self.device),
            "model's lean layers": None if self.model.lean is None else asdict(self.model.lean),
            # Another version may round otherwise, and a resumed training must end in the same bits.
            "torch": torch.__version__,
        }

    @property
    def train(self) -> Split:
        """The pictures that it learns from."""
        return self.parts.data.train

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch, at least one."""
        # The pictures left over are others in every epoch; so no step has a batch of one.
        return max(1, len(self.train) // self.recipe.train.batch)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.steps_per_epoch * self.recipe.train.epochs

    @property
    def batch_without_gradients(self) -> int:
        """Pictures at once where nothing is kept: half a step's, so that they need no more memory.

        Layers without gradients are PyTorch's own. Its kernels copy their maps into another layout,
        and no count knows of that.
        """
        return max(1, min(BATCH, self.recipe.train.batch // 2))

    @property
    def finished(self) -> bool:
        """Whether every epoch is over, or none was better for as long as the recipe waits."""
        done, patience = len(self.epochs), self.recipe.train.patience
        waited = patience is not None and self.best is not None and done - self.best[0] >= patience
        return waited or done == self.recipe.train.epochs

    def history(self) -> History:
        """Return what each epoch reached and which one is kept: without validation the last."""
        part = self.parts.validation
        return History(
            epochs=tuple(self.epochs),
            epoch=len(self.epochs) if self.best is None else self.best[0],
            validation=0 if part is None else len(part),
        )

    def start(self, baseline: Probe) -> None:
        """Begin with the baseline's head."""
        state = {"weight": baseline.weight, "bias": baseline.bias}
        self.model.domain[HEAD].load_state_dict(state)
        self.head_accuracy, self.started = baseline.accuracy, True

    def resume(self, state: State) -> None:
        """Go on from ``state``; raises TrainingError naming every difference."""
        if changes := differences(state.identity, self.identity):
            lines = "\n  ".join(changes)
            raise TrainingError(
                f"the training to resume at {state_path(self.out)} is another one:\n  {lines}",
                fix="undo the change, or train from the start and overwrite it",
            )
        restore_state(state, self.model, self.optimiser)
        self.step, self.head_accuracy, self.started = state.step, state.head_accuracy, True
        self.epochs, self.best = list(state.epochs), state.best
        self.meter = Meter(state.meter)

    def save(self) -> None:
        """Replace the state on disk by the present one."""
        state = State(
            step=self.step,
            identity=self.identity,
            head_accuracy=self.head_accuracy,
            epochs=tuple(self.epochs),
            best=self.best,
            meter=self.meter.sums(),
            domain=finite_domain(self.model, self.step),
            optimiser=dict(optimiser_tensors(self.optimiser)),
        )
        save_state(state_path(self.out), state)

    def evaluated(self, split: Split, phase: Phase) -> Evaluation:
        """Return what the model reaches on ``split``, which is looked at in ``phase``."""
        batch = self.batch_without_gradients
        with _memory_watched(self):
            return evaluate(
                self.model, split, self.recipe.preprocess, batch=batch, tick=self.tick(phase)
            )

    def end_epoch(self) -> EpochFigures:
        """Look at the validation part, keep the weights if they are the best, and count it."""
        domain = finite_domain(self.model, self.step)
        rate = self.recipe.train.lr * lr_factor((self.step - 1) / self.steps)
        figures = self.meter.figures(rate)
        epoch, part = len(self.epochs) + 1, self.parts.validation
        if part is not None:
            evaluation = self.evaluated(part, "validation")
            _check_finite(self, torch.tensor(evaluation.loss))
            figures = replace(
                figures,
                validation_loss=evaluation.loss,
                validation_accuracy=evaluation.accuracy,
                validation_balanced_accuracy=evaluation.balanced_accuracy,
                validation_executed_share=evaluation.executed_share,
            )
            reached = score(evaluation, self.recipe.train)
            # Of equals the later one: it trained longer, at a lower rate.
            if self.best is None or reached >= self.best[1]:
                self.best = epoch, reached
                save_best(best_path(self.out), domain, epoch)
        self.epochs.append(figures)
        self.meter = Meter()
        return figures

    def tick(self, phase: Phase) -> Tick:
        """Return what a phase calls between its batches: it reports, and stops if asked to."""

        def tick(done: int, total: int) -> None:
            self.progress.phase(phase, done, total)
            self.stop_if_asked()

        return tick

    def stop_if_asked(self) -> None:
        """Raise TrainingError if a signal asked to stop, with the state on disk if there is one.

        To be called where no step is under way: the state is whole there.
        """
        if not self.interrupted:
            return
        if not self.started:
            raise TrainingError(
                "stopped before the first step; there is nothing to go on with",
                fix="train from the start",
            )
        self.save()
        epoch = min(self.step // self.steps_per_epoch + 1, self.recipe.train.epochs)
        raise TrainingError(
            f"stopped after step {self.step} of {self.steps} (epoch {epoch} of "
            f"{self.recipe.train.epochs}); the state lies in {state_path(self.out)}",
            fix="go on with resume",
        )

    def check_frozen(self) -> None:
        """Raise TrainingError if the backbone changed in spite of everything."""
        before, now = self.identity["backbone's weights_digest"], weights_digest(self.model)
        if before != now:
            raise TrainingError(
                f"the backbone changed while its domain was trained: {before} became {now}",
                fix="look for a module that writes its own tensors in evaluation mode",
            )


def _digested(selection: Selection) -> str:
    document = {name: list(channels) for name, channels in selection.items()}
    return digest.sha256(canonical_json(document))


def _optimiser(domain: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW over the domain's parameters.

    Gates learn faster and, like biases and norms, do not decay. Overrides of backbone tensors learn
    at the method's own rate.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in domain.named_parameters():
        gate, override = ".gate." in name, name.startswith(f"{OWN}.")
        factor = GATE_LR_FACTOR if gate else 1.0
        if override:
            factor = REGISTRY[recipe.method].lr_factor
        # Decay would pull a mask's scores across their threshold of 5e-3.
        decays = not gate and parameter.dim() >= 2 and not name.endswith(".scores")
        decay = recipe.train.weight_decay if decays else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr_factor": factor, "weight_decay": decay}
            for (factor, decay), parameters in groups.items()
        ],
        lr=recipe.train.lr,
    )


def _loop(run: _Run, log: Log | None, save_every_s: float) -> None:
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
            with _memory_watched(run, saves=True):
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


def _step(run: _Run, drawn: Epoch) -> None:
    """Do one step of the optimiser; ``run.step`` counts it only once it is whole."""
    model, spec = run.model, run.recipe.train
    images, labels = _batch(run, drawn)
    done = run.step / run.steps
    model.train()
    model.generator, model.noise_scale = _noise(spec.seed, run.step), noise_scale(done)
    with run.device.arithmetic():
        trace = model.trace(images, maps=False)
    assert trace.logits is not None
    trace.logits = trace.logits.float()  # the loss is always float32's
    share = model.executed_share(trace)
    weight = spec.budget_weight if trace.opened else 0.0  # without gates the share is fixed
    loss = training_loss(
        trace.logits,
        labels,
        share,
        budget=spec.budget,
        weight=weight,
        classes=run.class_weights,
    )
    # Before the update: a loss that is not finite would put NaN into every tensor.
    _check_finite(run, loss)
    for group in run.optimiser.param_groups:
        group["lr"] = spec.lr * group["lr_factor"] * lr_factor(done)
    run.optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    run.updating = True
    run.optimiser.step()
    run.updating = False
    run.step += 1
    run.meter.add(loss, labels, share, trace)


@contextmanager
def _memory_watched(run: _Run, *, saves: bool = False) -> Iterator[None]:
    """Turn memory that ran out into an error that says which state a training can go on from.

    ``saves``: save the present state first, if there is memory for that. In the middle of an update
    some tensors are a step ahead, so then the state saved before stays.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as err:
        if not is_exhaustion(err):
            raise
        run.optimiser.zero_grad()  # gradients are memory that the rest can use
        if saves and not run.updating:
            with suppress(MemoryError, RuntimeError, StorageError):
                run.save()
        raise exhausted(run.model, run.recipe.train.batch, _saved(run)) from err


def _saved(run: _Run) -> str:
    path = state_path(run.out)
    return f"the last good state is {path}" if path.exists() else "no state had been saved yet"


def _batch(run: _Run, drawn: Epoch) -> tuple[Tensor, Tensor]:
    size = run.recipe.train.batch
    place = run.step % run.steps_per_epoch
    rows = drawn.order[place * size : (place + 1) * size]
    pictures, labels = run.train.batch(rows)
    changed = augmented(pictures, rows, drawn)
    return as_tensors(run.recipe.preprocess, changed, labels, run.device.name)


def _noise(seed: int, step: int) -> torch.Generator:
    # A generator of its own per step: the number of steps is all that a resume needs to know.
    word = np.random.SeedSequence([seed, _GATE_NOISE, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word))


def _check_finite(run: _Run, loss: Tensor) -> None:
    if bool(loss.isfinite()):
        return
    raise DivergedError(
        f"after step {run.step} of {run.steps}: expected a finite loss, got {loss.item()}; "
        f"{_saved(run)}",
        fix=f"lower train.lr in the recipe (now {run.recipe.train.lr:g}) and train from the start, "
        "overwriting this training",
    )
