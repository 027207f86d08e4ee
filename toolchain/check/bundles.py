"""Check a finished bundle against its own golden data: what a user's CI runs, without torch.

Rules of this file: everything is verified before it runs (archive, manifest, slots, backbone
digests); the shipped graphs run with onnxruntime alone; with onnx and onnx-ir installed the graphs
are linked anew from the halves as well, must come out byte for byte, and the staged reference runs
beside them. What was not run is listed, with the reason.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load as load_safetensors

from toolchain import bundle
from toolchain.bundle import BackboneArtefact, Bundle
from toolchain.bundle.manifest import LINKED_ROLES
from toolchain.check import parity, subjects
from toolchain.check.golden import Golden, read_golden
from toolchain.check.parity import ParityReport, Subject
from toolchain.errors import BundleError, DataError, Fault, GraphError
from toolchain.fields import read_section
from toolchain.preprocess import Preprocessing

SHIPPED = ("swap-if", "swap-rows", "static-if")


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
    held = bundle.open_bundle(path)
    artefact = find_backbone(held, path, backbone)
    bundle.match(held.manifest, artefact)
    _require_graphs(held)
    golden = _golden(held)
    slots = load_safetensors(held.blob(held.names("slots")[0]))
    folder = artefact.path
    try:
        under_test = _subjects(held, artefact, slots)
    except GraphError as err:
        # Whatever a graph of a bundle does wrong, the bundle is not what its manifest says.
        raise BundleError(f"{path}: {err.message}", fix="export the domain again") from err
    report = parity.compare(
        golden,
        under_test.subjects,
        slots,
        preprocessing(held),
        tolerance=held.manifest.selftest.tolerance_relative if tolerance is None else tolerance,
        threads=threads,
    ).require()
    return BundleCheck(
        path,
        folder,
        held.manifest.domain,
        report,
        held.checks,
        under_test.relinked,
        under_test.not_run,
    )


@dataclass(frozen=True, slots=True)
class _UnderTest:
    """What is compared, which graphs were linked anew, and what was left out."""

    subjects: tuple[Subject, ...]
    relinked: tuple[str, ...]
    not_run: tuple[str, ...]


def _subjects(held: Bundle, artefact: BackboneArtefact, slots: subjects.Slots) -> _UnderTest:
    folder = artefact.path
    found: list[Subject] = []
    relinked: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()
    tapped: dict[str, subjects.Builder] = {}
    if _has_onnx():
        from toolchain.check import relink

        linked = relink.relink(held, artefact)
        relinked = linked.identical
        tapped = linked.tapped(folder, slots)
        found.append(subjects.staged(linked.halves, folder))
    else:
        not_run = (
            "staged, and linking anew from domain.onnx: the packages onnx and onnx-ir are not "
            "installed (pip install 'da3-toolchain[check]')",
        )
    for name in linked_names(held):
        graph = held.blob(f"{name}.onnx")
        found.append(subjects.shipped(name, graph, folder, slots, tapped=tapped.get(name)))
    return _UnderTest(tuple(found), relinked, not_run)


def _require_graphs(held: Bundle) -> None:
    """A bundle without a graph, or with one under another role, would pass by not running it."""
    wanted = {(name.partition("-")[0], f"{name}.onnx") for name in SHIPPED}
    found = {(role, name) for role in LINKED_ROLES for name in held.names(role)}
    if wanted != found:
        raise BundleError(
            f"expected the linked graphs {sorted(wanted)} (role, name), got {sorted(found)}",
            fix="export the domain again",
        )


def linked_names(held: Bundle) -> tuple[str, ...]:
    """Return the stems of a bundle's linked graphs: ``swap-if``, ..."""
    names = [n for role in LINKED_ROLES for n in held.names(role)]
    return tuple(name.removesuffix(".onnx") for name in names)


def preprocessing(held: Bundle) -> Preprocessing:
    """Return a bundle's preprocessing as the value that :mod:`toolchain.preprocess` takes."""
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in _preprocess(held).items()}
    faults: list[Fault] = []
    found = read_section(Preprocessing, "preprocess", given, faults)
    if found is None:
        raise BundleError(
            f"the manifest's preprocessing cannot be meant: {'; '.join(map(str, faults))}",
            fix="export the domain again",
        )
    return found


def _preprocess(held: Bundle) -> dict[str, Any]:
    return asdict(held.manifest.preprocess)


def find_backbone(held: Bundle, path: Path, given: Path | None) -> BackboneArtefact:
    """Return the verified artefact that a bundle names.

    ``given`` may be the artefact itself or its parent; without it the bundle's own folder is
    searched. Raises DataError saying where it was looked for.
    """
    wanted = held.manifest.backbone
    name = bundle.artefact_name(wanted.name, wanted.weights_digest)
    if given is not None and (given / "manifest.json").is_file():
        return bundle.open_backbone(given)
    candidate = (given if given is not None else path.parent) / name
    if not candidate.is_dir():
        raise DataError(
            f"expected the backbone {name} at {candidate}, found nothing",
            fix="copy it there, or name its folder: da3 check BUNDLE --backbone DIR",
        )
    return bundle.open_backbone(candidate)


def _golden(held: Bundle) -> Golden:
    names = held.names("golden")
    if not names:
        raise BundleError(
            "the bundle holds no golden data, expected one file of role 'golden'",
            fix="export the domain again",
        )
    golden = read_golden(held.blob(names[0]), names[0])
    if fault := _golden_fault(golden, held):
        raise BundleError(f"{names[0]}: {fault}", fix="export the domain again")
    return golden


def _golden_fault(golden: Golden, held: Bundle) -> str:
    """Golden data that are right by themselves may still be another domain's."""
    manifest = held.manifest
    wanted, found = len(manifest.classes), golden.logits.shape[1]
    if wanted != found:
        return f"expected logits of {wanted} classes, got {found}"
    if (side := golden.pixels.shape[1]) != manifest.preprocess.size:
        return f"expected pictures of {manifest.preprocess.size} pixels, got {side}"
    slots = {slot.name for slot in manifest.adaptor.slots}
    strange = [site for site in golden.gate_sites if f"{site}.gate.bias" not in slots]
    if strange:
        return f"expected gates of this domain, got {strange}"
    return _other_states(golden, held)


def _other_states(golden: Golden, held: Bundle) -> str:
    """Tell how the manifest describes the golden data otherwise than they are."""
    manifest = held.manifest
    if (said := manifest.selftest.samples) != len(golden):
        return f"expected {said} samples as the manifest says, got {len(golden)}"
    told = {
        site: (state.open, state.closed, state.forced)
        for site, state in manifest.selftest.gate_states.items()
    }
    seen = {site: (s.open, s.closed, s.forced) for site, s in golden.states().items()}
    if told != seen:
        return f"expected the gate states {told} as the manifest says, got {seen}"
    return ""


def _has_onnx() -> bool:
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnx_ir"))
