"""What a training leaves for people to look at, epoch by epoch: a table, a picture, TensorBoard's.

Rules of this file: it writes what the checkpoint will say of each epoch, and no training depends on
it. Table and picture are written anew as a whole, so they are right after a resume as well;
TensorBoard's file grows, and a resumed training begins another one beside it.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from toolchain.core.files import make_folder, write_atomic
from toolchain.training.adapt.checkpoint import EpochFigures
from toolchain.training.loop import events
from toolchain.training.loop.curve import curve
from toolchain.training.loop.destination import as_storage_error

TABLE, PICTURE, EVENTS = "epochs.csv", "curve.svg", "events.out.tfevents"
TAGS: Mapping[str, str] = {
    "lr": "lr",
    "loss": "loss/train",
    "accuracy": "accuracy/train",
    "executed_share": "executed_share/train",
    "validation_loss": "loss/validation",
    "validation_accuracy": "accuracy/validation",
    "validation_balanced_accuracy": "balanced_accuracy/validation",
    "validation_executed_share": "executed_share/validation",
}
"""TensorBoard's tag of each figure: what has one word before the slash shares a plot."""


class Log:
    """Writes into ``folder``, which is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder, fix="choose another folder for the log")
        self._folder = folder
        self._events = folder / f"{EVENTS}.{time.time_ns()}"
        self._append(events.header(time.time()))

    def epoch(self, epochs: Sequence[EpochFigures], best: int | None) -> None:
        """Write a finished epoch, the last of ``epochs``; raises StorageError."""
        write_atomic(self._folder / TABLE, table(epochs).encode(), overwrite=True)
        write_atomic(self._folder / PICTURE, curve(epochs, best).encode(), overwrite=True)
        values = {tag: getattr(epochs[-1], name) for name, tag in TAGS.items()}
        present = {tag: value for tag, value in values.items() if value is not None}
        self._append(events.scalars(time.time(), len(epochs), present))

    def _append(self, data: bytes) -> None:
        with as_storage_error(f"write {self._events}"), self._events.open("ab") as file:
            file.write(data)


def table(epochs: Sequence[EpochFigures]) -> str:
    """Return a CSV (RFC 4180) with a row for each epoch; a figure that there is not is empty."""
    names = [item.name for item in fields(EpochFigures)]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["epoch", *names])
    for number, figures in enumerate(epochs, 1):
        writer.writerow([number, *(getattr(figures, name) for name in names)])
    return text.getvalue()
