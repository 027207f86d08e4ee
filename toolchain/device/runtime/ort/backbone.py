"""A verified backbone's folder, and the onnxruntime sessions that are made over it.

Rules of this file: the weights file is hashed once, when the backbone is opened. Each session looks
again whether it is still the same file. Which session a release gets is decided by
:mod:`~toolchain.device.runtime.ort.sessions`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from toolchain.bundle import BackboneArtefact, open_backbone
from toolchain.bundle.graphs import (
    LIMIT_GRAPH_BYTES,
    WEIGHTS_NAME,
    graph_files,
    require_graph,
)
from toolchain.bundle.release import Graph, Release
from toolchain.core.errors import BackboneMismatchError, BundleError, GraphError
from toolchain.device.runtime.backbone_session import BackboneSession, Computed, Cost, ModelFacts
from toolchain.device.runtime.ort.backend import LinkedModel
from toolchain.device.runtime.ort.session import Session, version
from toolchain.device.runtime.ort.weights import weights_folder

_OUTPUTS = {"logits", "gates"}
COPIES = 4
"""How often all tensors may stand in one graph; branches may read the same ones."""


@dataclass(frozen=True, slots=True)
class VerifiedBackbone:
    """A verified artefact and what identified its weights file when it was hashed."""

    artefact: BackboneArtefact
    identity: tuple[int, ...]

    def require_unchanged(self) -> None:
        """Raise BackboneMismatchError if the weights file is not the one that was hashed."""
        path = self.artefact.weights_path
        if not self.identity or _identity(path) != self.identity:
            raise BackboneMismatchError(
                f"{path} was changed after it was verified", fix="start again, which verifies it"
            )


def open_verified(folder: Path) -> VerifiedBackbone:
    """Return the backbone in ``folder``, hashed; raises as ``bundle.open_backbone``."""
    # Taken before hashing: a file exchanged from here on has another identity, hashed or not.
    identity = _identity(folder / WEIGHTS_NAME)
    return VerifiedBackbone(open_backbone(folder), identity)


def unhashed(artefact: BackboneArtefact) -> VerifiedBackbone:
    """Return a backbone that another process hashed, for one that only tries what it runs."""
    return VerifiedBackbone(artefact, _identity(artefact.weights_path))


def make_session(
    backbone: VerifiedBackbone,
    release: Release,
    graph: Graph,
    *,
    number: int,
    threads: int,
    provider: str,
) -> BackboneSession:
    """Make a session over ``graph``, the release's own. Raises BundleError for a graph that lies.

    The weights file was hashed when the backbone was opened. Whether it is still the same file is
    looked at again once the session holds it. Raises as
    :func:`toolchain.device.runtime.ort.weights.weights_folder` for a release with a patch.
    """
    # Before the graph is read: its bytes belong to what the session costs.
    before, started = _resident_bytes(), time.perf_counter()
    data = graph.read()
    require_graph(
        data,
        graph.name,
        files=graph_files(graph.linkage),
        # What the two files hold, some of it more than once, and what lies in the graph itself.
        limit_tensor_bytes=COPIES * (backbone.artefact.weights_bytes + release.slots_bytes)
        + LIMIT_GRAPH_BYTES,
    )
    try:
        with weights_folder(backbone.artefact, release.patch) as folder:
            session = Session(
                data,
                folder=folder,
                constants=release.slots if graph.linkage.folds_domain else None,
                threads=threads,
                provider=provider,
                what=graph.name,
            )
    # The graph came in a bundle, so it is the bundle that is wrong.
    except GraphError as err:
        raise BundleError(f"{release.name}: {err.message}", fix="export the domain again") from err
    if "image" not in session.inputs or not {"logits"} <= set(session.outputs) <= _OUTPUTS:
        raise BundleError(
            f"{session.what}: expected image to logits and gates, got {list(session.inputs)[:5]} "
            f"to {list(session.outputs)[:5]}",
            fix="export the domain again",
        )
    backbone.require_unchanged()
    after = _resident_bytes()
    grown = None if before is None or after is None else max(0, after - before)
    return BackboneSession(
        LinkedModel(session),
        ModelFacts(
            computed=Computed.of(release, graph),
            options=release.options,
            runs_on=f"onnxruntime {version()} {provider}",
        ),
        number=number,
        cost=Cost(resident_bytes=grown, seconds=time.perf_counter() - started),
    )


def _identity(path: Path) -> tuple[int, ...]:
    """Return device, inode, size in bytes and time of the last change; nothing without a file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _resident_bytes() -> int | None:
    """Resident memory of this process, where the system tells it (Linux, proc(5))."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
