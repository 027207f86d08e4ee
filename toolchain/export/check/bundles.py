"""Check a finished bundle against its own golden data: what a user's CI runs, without torch.

Rules of this file: everything is verified before it runs (archive, manifest, slots, backbone
digests). A bundle is checked by what it says it holds. The shipped graphs run with onnxruntime
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
from toolchain.bundle.linkage import LINKAGES
from toolchain.bundle.release import patch_of
from toolchain.bundle.slots import Slots
from toolchain.core.errors import BundleError, GraphError
from toolchain.device.runtime.ort.weights import weights_folder
from toolchain.export.check import candidates, parity
from toolchain.export.check.parity import Candidate, ParityReport


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
    opened = bundle.open_bundle(path)
    manifest = opened.manifest
    artefact = bundle.find_backbone(
        manifest.backbone, manifest.preprocess.size, backbone or path.parent
    )
    bundle.match(opened.manifest.backbone, artefact, opened.manifest.domain)
    _require_compared(opened)
    golden = golden_of(opened)
    slots = load_safetensors(opened.blob(opened.names("slots")[0]))
    # Tapped twins are made after a failure only, so the folder stays until all was compared.
    with weights_folder(artefact, patch_of(opened)) as folder:
        try:
            under_test = _under_test(opened, artefact, slots, folder)
        except GraphError as err:
            # Whatever a graph of a bundle does wrong, the bundle is not what its manifest says.
            raise BundleError(f"{path}: {err.message}", fix="export the domain again") from err
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
    """Return what is compared, its sessions made from the weights in ``folder``."""
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
            "installed (pip install 'da3-toolchain[check]')",
        )
    for linkage in candidates.linkages_of(opened):
        graph = opened.blob(linkage.file)
        tested.append(
            candidates.shipped(linkage, graph, folder, slots, tapped=tapped.get(linkage.stem))
        )
    return _UnderTest(tuple(tested), relinked, not_run)


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
            fix="export the domain again",
        )


def _has_onnx() -> bool:
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnx_ir"))
