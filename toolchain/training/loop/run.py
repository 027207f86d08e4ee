"""One training on its way: what it depends on, how far it is, and how it is kept and gone on with.

Rules of this file: a ``Run`` holds the state of a training, on disk and in memory, and says what
is wrong with it. In which order things are done, and what a step is, stands in ``training``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.core import digest
from toolchain.core.canonical import canonical_json
from toolchain.core.errors import DivergedError, StorageError, TrainingError
from toolchain.recipe import Recipe
from toolchain.training.adapt.attached import HEAD, OWN, AttachedModel, weights_digest
from toolchain.training.adapt.checkpoint import EpochFigures, History
from toolchain.training.adapt.methods import REGISTRY
from toolchain.training.adapt.overrides import Selection
from toolchain.training.data.splits import DomainData, Split
from toolchain.training.loop.balance import class_weights
from toolchain.training.loop.baseline import Probe
from toolchain.training.loop.destination import best_path, state_path
from toolchain.training.loop.devices import Device
from toolchain.training.loop.evaluation import BATCH, Evaluation, evaluate
from toolchain.training.loop.exhausted import exhausted, is_exhaustion
from toolchain.training.loop.holdout import Parts, parted, score
from toolchain.training.loop.identity import data_digest, refuse_changes, training_document
from toolchain.training.loop.interruption import Interruption
from toolchain.training.loop.meter import Meter
from toolchain.training.loop.progress import Phase, Progress, Tick
from toolchain.training.loop.schedule import GATE_LR_FACTOR, lr_factor
from toolchain.training.loop.state import (
    State,
    finite_domain,
    optimiser_tensors,
    restore_state,
    save_best,
    save_state,
)
from toolchain.training.loop.verdict import gentler


@dataclass
class Run:
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
        """Note what the training depends on, so that a resume can compare it; let gates learn."""
        generator = torch.Generator().manual_seed(self.recipe.train.seed)
        for _, gate in self.model.gates():
            gate.learn(generator)
        self.optimiser = _optimiser(self.model.domain, self.recipe)
        self.parts = parted(self.data, self.recipe)
        weights = class_weights(self.train.labels, self.data.classes, self.recipe.train)
        place = self.device.name
        self.class_weights = None if weights is None else torch.from_numpy(weights).to(place)
        self.identity = identity(self.model, self.data, self.recipe, self.device)

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
        """Begin with the baseline's head, or from zero where the method says so."""
        state = {"weight": baseline.weight, "bias": baseline.bias}
        if not REGISTRY[self.model.method].fitted_head:
            state = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        self.model.domain[HEAD].load_state_dict(state)
        self.head_accuracy, self.started = baseline.accuracy, True

    def resume(self, state: State) -> None:
        """Go on from ``state``; raises TrainingError naming every difference."""
        refuse_changes(state_path(self.out), state.identity, self.identity)
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
            domain=self._finite(),
            optimiser=dict(optimiser_tensors(self.optimiser)),
        )
        save_state(state_path(self.out), state)

    def evaluated(self, split: Split, phase: Phase) -> Evaluation:
        """Return what the model reaches on ``split``, which is looked at in ``phase``."""
        batch = self.batch_without_gradients
        with self.memory_watched():
            return evaluate(
                self.model, split, self.recipe.preprocess, batch=batch, tick=self.tick(phase)
            )

    def end_epoch(self) -> EpochFigures:
        """Look at the validation part, keep the weights if they are the best, and count it."""
        domain = self._finite()
        rate = self.recipe.train.lr * lr_factor((self.step - 1) / self.steps)
        figures = self.meter.figures(rate)
        epoch, part = len(self.epochs) + 1, self.parts.validation
        if part is not None:
            evaluation = self.evaluated(part, "validation")
            self.check_finite(torch.tensor(evaluation.loss))
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

    def set_rates(self, done: float) -> None:
        """Let each group of parameters learn at its rate, at the share ``done`` of all steps."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.train.lr * group["lr_factor"] * lr_factor(done)

    @contextmanager
    def memory_watched(self, *, saves: bool = False) -> Iterator[None]:
        """Turn memory that ran out into an error that says which state a training can go on from.

        ``saves``: save the present state first, if there is memory for that. In the middle of an
        update some tensors are a step ahead, so then the state saved before stays.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as err:
            if not is_exhaustion(err):
                raise
            self.optimiser.zero_grad()  # gradients are memory that the rest can use
            if saves and not self.updating:
                with suppress(MemoryError, RuntimeError, StorageError):
                    self.save()
            raise exhausted(self.model, self.recipe.train.batch, self._saved()) from err

    def check_finite(self, loss: Tensor) -> None:
        """Raise DivergedError unless ``loss``, a scalar, is finite."""
        if bool(loss.isfinite()):
            return
        err = DivergedError(
            f"after step {self.step} of {self.steps}: expected a finite loss, got {loss.item()}; "
            f"{self._saved()}",
            fix=f"lower train.lr in the recipe (now {self.recipe.train.lr:g}) and train from the "
            "start, overwriting this training",
        )
        raise gentler(err, self.recipe)

    def _finite(self) -> dict[str, Tensor]:
        """Return the domain's tensors; raises DivergedError unless they are finite."""
        try:
            return finite_domain(self.model, self.step)
        except DivergedError as err:
            raise gentler(err, self.recipe) from None

    def _saved(self) -> str:
        path = state_path(self.out)
        return f"the last good state is {path}" if path.exists() else "no state had been saved yet"


def identity(
    model: AttachedModel, data: DomainData, recipe: Recipe, device: Device
) -> dict[str, Any]:
    """Return all that a training depends on, by name, so that a resume can compare it."""
    return training_document(recipe) | {
        "backbone's weights_digest": weights_digest(model),
        "data's digest": data_digest(data),
        "model's method": model.method,
        "model's options": asdict(model.options),
        "model's classes": model.classes,
        "model's selection": _digested(model.selection),
        "training's device": asdict(device),
        "model's lean layers": None if model.lean is None else asdict(model.lean),
        # Another version may round otherwise, and a resumed training must end in the same bits.
        "torch": torch.__version__,
    }


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
