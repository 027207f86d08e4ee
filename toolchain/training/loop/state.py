"""A half-done training on disk, from which ``resume`` goes on.

Rules of this file: one safetensors file beside the result's folder, always replaced whole; no
pickle. It holds the domain's tensors, the optimiser's, the number of finished steps, what each
epoch reached and what the training depends on. A second file holds the domain's tensors after the
best epoch, so that training keeps no copy in memory. It needs no random state: every draw of a
training is a function of (seed, step), so the number of steps is the state of all generators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from toolchain.core import digest
from toolchain.core.canonical import canonical_json, parse_json
from toolchain.core.errors import DivergedError, TrainingError
from toolchain.core.files import read_limited, write_atomic
from toolchain.core.safetensors import read_metadata
from toolchain.core.words import read_record, to_json
from toolchain.training.adapt.attached import AttachedModel, arrays
from toolchain.training.adapt.checkpoint import EpochFigures
from toolchain.training.loop.identity import STATE_KEY, Identity

FORMAT = 2
LIMIT_BYTES = 4 << 30
_DOMAIN, _OPTIMISER = "domain", "optimiser"


@dataclass(frozen=True, slots=True)
class State:
    """A training after ``step`` finished steps; ``identity`` describes what it depends on.

    ``head_accuracy``: the head-only baseline's, measured before the first step. ``epochs``: what
    each finished epoch reached; ``best``: the best of them, from 1, and its score; ``meter``: the
    sums over the steps of the present one.
    """

    step: int
    identity: Identity
    head_accuracy: float
    epochs: tuple[EpochFigures, ...]
    best: tuple[int, float] | None
    meter: Mapping[str, float]
    domain: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]


def finite_domain(model: AttachedModel, step: int) -> dict[str, Tensor]:
    """Return the domain's tensors, sharing memory with the model.

    Raises DivergedError when a tensor is not finite: such a state must not replace a good one.
    """
    domain = {name: tensor.detach() for name, tensor in model.domain.state_dict().items()}
    bad = [name for name, tensor in domain.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise DivergedError(
            f"step {step}: expected finite weights, got NaN or Inf in {', '.join(bad[:4])}",
            fix="lower train.lr in the recipe and train from the start, overwriting this training",
        )
    return domain


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield the optimiser's tensors by name, sharing memory with it."""
    for index, entry in optimiser.state_dict()["state"].items():
        for name, value in entry.items():
            yield f"{index}.{name}", value


def save_state(path: Path, state: State) -> None:
    """Write ``state`` to ``path``, replacing an older one whole; raises StorageError."""
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, part in ((_DOMAIN, state.domain), (_OPTIMISER, state.optimiser))
        for name, tensor in part.items()
    }
    about = {
        "format": FORMAT,
        "step": state.step,
        "identity": dict(state.identity),
        "head_accuracy": state.head_accuracy,
        "epochs": to_json(state.epochs),
        "best": to_json(state.best),
        "meter": dict(state.meter),
    }
    _write(path, tensors, about)


def save_best(path: Path, domain: Mapping[str, Tensor], epoch: int) -> None:
    """Write the domain's tensors after ``epoch`` to ``path``; raises StorageError."""
    _write(path, domain, {"format": FORMAT, "epoch": epoch})


def _write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    # safetensors refuses other tensors.
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # safetensors itself would not notice a changed bit.
    noted = {**about, "tensors": digest.weights_digest(arrays(tensors))}
    # One metadata key for all: safetensors writes several in no fixed order.
    text = canonical_json(noted).decode()
    write_atomic(path, safetensors.torch.save(tensors, {STATE_KEY: text}), overwrite=True)


def load_state(path: Path) -> State:
    """Return the state in ``path``; raises TrainingError for anything but a whole one."""
    with _as_training_error(path):
        tensors, about = _read(path)
        return State(
            step=int(about["step"]),
            identity=dict(about["identity"]),
            head_accuracy=float(about["head_accuracy"]),
            epochs=tuple(_figures(entry) for entry in about["epochs"]),
            best=None if about["best"] is None else (about["best"][0], about["best"][1]),
            meter=dict(about["meter"]),
            domain=_part(tensors, _DOMAIN),
            optimiser=_part(tensors, _OPTIMISER),
        )


def load_best(path: Path, model: AttachedModel, epoch: int) -> None:
    """Put the tensors that :func:`save_best` wrote into ``model``.

    Raises TrainingError for anything but those of ``epoch``.
    """
    with _as_training_error(path):
        tensors, about = _read(path)
        if about["epoch"] != epoch:
            raise ValueError(f"epoch {about['epoch']}, expected {epoch}")
        model.domain.load_state_dict(tensors)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and notes of a file of this format; raises various errors for others."""
    data = read_limited(path, limit_bytes=LIMIT_BYTES, what="training state")
    tensors = safetensors.torch.load(data)
    about = parse_json(read_metadata(data)[STATE_KEY])
    if about["format"] != FORMAT:
        raise ValueError(f"format {about['format']}, expected {FORMAT}")
    if (actual := digest.weights_digest(arrays(tensors))) != about["tensors"]:
        raise ValueError(f"tensors {actual}, expected {about['tensors']}")
    return tensors, about


def _figures(entry: object) -> EpochFigures:
    return read_record(EpochFigures, entry, "epochs", error=TrainingError)


@contextmanager
def _as_training_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as err:
        raise TrainingError(
            f"{path}: expected the state of a training, got a damaged or foreign file: {err}",
            fix="remove it and train from the start",
        ) from err


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def restore_state(state: State, model: AttachedModel, optimiser: torch.optim.Optimizer) -> None:
    """Put ``state`` into ``model`` and ``optimiser``; raises TrainingError if it does not fit."""
    try:
        model.domain.load_state_dict(dict(state.domain))
    except RuntimeError as err:
        raise TrainingError(
            f"the training to resume does not fit the model: {err}",
            fix="train from the start, without resume",
        ) from err
    # The parameter groups are built anew from the recipe; only the moments come from the file.
    groups = optimiser.state_dict()["param_groups"]
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.optimiser.items():
        index, _, field = name.partition(".")
        entries.setdefault(int(index), {})[field] = tensor
    optimiser.load_state_dict({"state": entries, "param_groups": groups})
