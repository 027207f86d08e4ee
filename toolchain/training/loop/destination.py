"""Where a training writes: an error of the last step is raised before the first one.

Rules of this file: it looks, makes the parent folder, keeps other trainings away and removes what
the caller asked to overwrite. ``checkpoint`` and ``state`` write the results themselves. No torch:
nobody waits for PyTorch to be refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolchain.core.errors import ExistsError, StorageError, TrainingError
from toolchain.core.files import exists
from toolchain.core.lock import locked


def state_path(folder: Path) -> Path:
    """Return where the half-done training of the result ``folder`` lies: beside it."""
    return folder.with_name(f"{folder.name}.training.safetensors")


def best_path(folder: Path) -> Path:
    """Return where the domain's tensors after the best epoch lie: beside the state."""
    return folder.with_name(f"{folder.name}.best.safetensors")


@contextmanager
def claimed(out: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Be the only training that writes ``out`` inside the block; its state is beside ``out``.

    Raises LockedError while another one does, ExistsError or StorageError where the checkpoint
    could not be written, TrainingError for ``resume`` with nothing to resume.
    """
    with as_storage_error(f"make {out.parent}"):
        out.parent.mkdir(parents=True, exist_ok=True)
    # Permission bits do not tell (root, read-only mounts), so try it.
    with as_storage_error(f"write in {out.parent}"), tempfile.TemporaryFile(dir=out.parent):
        pass
    with locked(out.with_name(f"{out.name}.training.lock"), what=f"the training into {out}"):
        if resume:
            _require_half_done(out)
        elif not overwrite:
            _refuse_existing(out)
        yield


def _require_half_done(out: Path) -> None:
    # The state is removed last, so without it a checkpoint is whole.
    if exists(state_path(out)):
        return
    if exists(out):
        raise TrainingError(
            f"expected a training to resume, got a finished one at {out}",
            fix="use it as it is, or ask for overwriting to train again",
        )
    raise TrainingError(
        f"expected a training to resume at {state_path(out)}, got no such file",
        fix="train from the start, without resume",
    )


def _refuse_existing(out: Path) -> None:
    if exists(out):
        raise ExistsError(
            f"expected no checkpoint at {out}, got an existing one",
            fix="ask for overwriting, or choose another folder",
        )
    if exists(state_path(out)):
        raise ExistsError(
            f"expected no half-done training, got one at {state_path(out)}",
            fix="go on with it (resume), or ask for overwriting",
        )


def remove_state(out: Path) -> None:
    """Remove the half-done training beside ``out``, if there is one; raises StorageError."""
    # The state comes last: without it a finished checkpoint counts as whole.
    for path in (best_path(out), state_path(out)):
        with as_storage_error(f"remove {path}"):
            path.unlink(missing_ok=True)


@contextmanager
def as_storage_error(action: str) -> Iterator[None]:
    """Turn an OSError inside the block of code into a StorageError: "cannot ``action``"."""
    try:
        yield
    except OSError as err:
        raise StorageError(f"cannot {action}: {err.strerror}", fix="choose another folder") from err
