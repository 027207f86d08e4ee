"""The weights that a session of a domain is made from: the backbone's, or those with its patch.

Rules of this file: the weights that a patch makes are compared with their digest in memory, before
a byte of them is written. The backbone's own files are never touched. onnxruntime takes large
tensors from a file. It can take the file's bytes from memory instead, but then it still reads the
tensors inside a conditional from the disk, silently (1.31). So the patched file stands in a private
folder while a session is made; after that the session needs it no more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolchain import bundle
from toolchain.bundle import BackboneArtefact
from toolchain.bundle.graphs import WEIGHTS_NAME
from toolchain.bundle.release import PatchFile
from toolchain.core.errors import StorageError
from toolchain.core.files import room_fix


@contextmanager
def weights_folder(artefact: BackboneArtefact, patch: PatchFile | None) -> Iterator[Path]:
    """Yield the folder whose ``weights.safetensors`` sessions are to be made from.

    Without a patch it is the artefact's; with one it is private and goes with the block. Raises
    BundleError for a patch that does not fit the backbone, StorageError.
    """
    if patch is None:
        yield artefact.path
        return
    weights = bundle.apply_patch(artefact.weights(), patch.about, patch.read())
    with _private() as folder:
        try:
            (folder / WEIGHTS_NAME).write_bytes(weights)
        except OSError as err:
            raise _refused(err, len(weights)) from err
        del weights
        yield folder


@contextmanager
def _private() -> Iterator[Path]:
    try:
        made = tempfile.TemporaryDirectory(prefix="da3-patched-", ignore_cleanup_errors=True)
    except OSError as err:
        raise _refused(err, 0) from err
    with made as name:
        yield Path(name)


def _refused(err: OSError, needed_bytes: int) -> StorageError:
    return StorageError(
        f"cannot write the patched weights ({needed_bytes} bytes) into {tempfile.gettempdir()}: "
        f"{err.strerror}",
        fix=room_fix(err, "free some space there, or name another folder in TMPDIR"),
    )
