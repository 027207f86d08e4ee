"""Check a finished bundle against its own golden data: what a user's CI runs, without torch.

Rules of this file: everything is verified before it runs (archive, manifest, slots, backbone
digests). A bundle is checked by what it says it holds. Its graphs are looked at by a reader of our
own, then tried in a process with limits, and only then does this process run them. Whatever goes
wrong with what a bundle holds is a fault of the bundle. The shipped graphs run with onnxruntime
alone. Where onnx and onnx-ir are installed, the graphs are linked anew from the halves as well and
must come out byte for byte, and the staged reference runs beside them. What was not run is listed,
with the reason.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load as load_safetensors

from toolchain import bundle
from toolchain.bundle import BackboneArtefact, Bundle
from toolchain.bundle.golden import golden_of
from toolchain.bundle.graphs import (
    LIMIT_GRAPH_BYTES,
    SLOTS_NAME,
    WEIGHTS_NAME,
    graph_files,
    require_graph,
)
from toolchain.bundle.linkage import LINKAGES
from toolchain.bundle.release import patch_of, read_release
from toolchain.bundle.slots import Slots
from toolchain.core.errors import BundleError, GraphError, SelftestError, install_command
from toolchain.core.files import read_limited
from toolchain.core.memory import memory_named
from toolchain.device.runtime.ort import trial
from toolchain.device.runtime.ort.weights import weights_folder
from toolchain.export.check import candidates, parity
from toolchain.export.check.parity import Candidate, ParityReport

_EXPORT = "export the domain again"


@dataclass(frozen=True, slots=True)
class BundleCheck:
    """What a check found. ``relinked``: graphs that came out byte for byte when linked anew.

    ``not_run`` lists what was left out and why.
    """

    bundle: Path
    backbone: Path
    domain: str
    report: ParityReport
    verified: tuple[str, ...]
    relinked: tuple[str, ...]
    not_run: tuple[str, ...]


def check_bundle(
    path: Path,
    *,
    backbone: Path | None = None,
    threads: int | None = None,
    tolerance: float | None = None,
) -> BundleCheck:
    """Verify ``path``, run every flavour over its golden data and compare.

    ``backbone``: the artefact's folder, or a folder that holds it; by default it is looked for
    beside the bundle. Raises BundleError, BackboneMismatchError, DataError (no backbone found),
    ParityError.
    """
    with memory_named(f"check of {path}"):
        return _checked(path, backbone, threads, tolerance)


def _checked(
    path: Path, backbone: Path | None, threads: int | None, tolerance: float | None
) -> BundleCheck:
    opened = bundle.open_bundle(path)
    manifest = opened.manifest
    artefact = bundle.find_backbone(
        manifest.backbone, manifest.preprocess.size, backbone or path.parent
    )
    bundle.match(opened.manifest.backbone, artefact, opened.manifest.domain)
    _require_compared(opened)
    golden = golden_of(opened)
    _require_graphs(opened, artefact)
    stems = [one.stem for one in candidates.linkages_of(opened)]
    try:
        trial.prove(path, read_release(opened), artefact, stems)
    except SelftestError as err:
        raise BundleError(f"{path}: {err.message}", fix=_EXPORT) from err
    slots = load_safetensors(opened.blob(opened.names("slots")[0]))
    # Tapped twins are made after a failure only, so the folder stays until all was compared.
    with weights_folder(artefact, patch_of(opened)) as folder:
        under_test = _under_test(opened, artefact, slots, folder)
        report = parity.compare(
            golden,
            under_test.tested,
            slots,
            opened.manifest.preprocess,
            tolerance=opened.manifest.selftest.tolerance_relative
            if tolerance is None
            else tolerance,
            threads=threads,
        ).require()
    return BundleCheck(
        path,
        artefact.path,
        opened.manifest.domain,
        report,
        opened.checks,
        under_test.relinked,
        under_test.not_run,
    )


@dataclass(frozen=True, slots=True)
class _UnderTest:
    """What is compared, which graphs were linked anew, and what was left out."""

    tested: tuple[Candidate, ...]
    relinked: tuple[str, ...]
    not_run: tuple[str, ...]


def _under_test(
    opened: Bundle, artefact: BackboneArtefact, slots: Slots, folder: Path
) -> _UnderTest:
    """Return what is compared, its sessions made from the weights in ``folder``.

    Raises BundleError for whatever goes wrong: what is read here is the bundle's and the backbone's
    own, and each was verified before.
    """
    try:
        return _linked(opened, artefact, slots, folder)
    except MemoryError:
        raise
    except BundleError:
        raise
    # onnx and onnx-ir answer a graph that contradicts itself with whatever they stumble over.
    except Exception as err:
        reason = err.message if isinstance(err, GraphError) else f"{type(err).__name__}: {err}"
        raise BundleError(f"its graphs cannot be read: {reason}", fix=_EXPORT) from err


def _linked(opened: Bundle, artefact: BackboneArtefact, slots: Slots, folder: Path) -> _UnderTest:
    tested: list[Candidate] = []
    relinked: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()
    tapped: dict[str, candidates.Builder] = {}
    if _has_onnx():
        from toolchain.export.check import relink

        linked = relink.relink(opened, artefact)
        relinked = linked.identical
        tapped = linked.tapped(folder, slots)
        tested.append(candidates.staged(linked.halves, folder))
    else:
        not_run = (
            "staged, and linking anew from domain.onnx: the packages onnx and onnx-ir are not "
            f"installed ({install_command('check')})",
        )
    for linkage in candidates.linkages_of(opened):
        graph = opened.blob(linkage.file)
        tested.append(
            candidates.shipped(linkage, graph, folder, slots, tapped=tapped.get(linkage.stem))
        )
    return _UnderTest(tuple(tested), relinked, not_run)


def _require_graphs(opened: Bundle, artefact: BackboneArtefact) -> None:
    """Raise BundleError for a graph that holds what no export writes."""
    for linkage in candidates.linkages_of(opened):
        require_graph(opened.blob(linkage.file), linkage.file, files=graph_files(linkage))
    (domain,) = opened.names("domain")
    require_graph(opened.blob(domain), domain, files=(SLOTS_NAME,))
    graph = artefact.graph_path
    data = read_limited(graph, limit_bytes=LIMIT_GRAPH_BYTES, what="ONNX graph")
    require_graph(data, str(graph), files=(WEIGHTS_NAME,))


def _require_compared(opened: Bundle) -> None:
    """Refuse a bundle that lacks a graph which its own parity figures name.

    A graph that is not there cannot fail. How many there are is the export's choice, which changes
    from version to version; the figures tell which graphs the export compared with PyTorch.
    """
    stems = {key.partition(".")[0] for key in opened.manifest.parity}
    compared = [one for one in LINKAGES if one.stem in stems and not one.is_segmented]
    listed = candidates.linkages_of(opened)
    if not {*compared} <= {*listed}:
        raise BundleError(
            f"expected the linked graphs {[one.stem for one in compared]}, which the manifest has "
            f"parity figures of, got {[one.stem for one in listed]}",
            fix=_EXPORT,
        )


def _has_onnx() -> bool:
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnx_ir"))
