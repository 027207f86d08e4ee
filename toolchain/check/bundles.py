"""Check a finished bundle against its own golden data: what a user's CI runs, without torch.

Rules of this file: everything is verified before it runs (archive, manifest, slots, backbone
digests); the shipped graphs run with onnxruntime alone; with onnx and onnx-ir installed the graphs
are linked anew from the halves as well, must come out byte for byte, and the staged reference runs
beside them. What was not run is listed, with the reason.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load as load_safetensors

from toolchain import bundle
from toolchain.bundle import BackboneArtefact, Bundle
from toolchain.check import parity, subjects
from toolchain.check.golden import Golden, read_golden
from toolchain.check.parity import ParityReport, Subject
from toolchain.errors import BundleError, DataError
from toolchain.preprocess import Preprocessing

LINKED_ROLES = ("swap", "static")


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
    golden = _golden(held)
    slots = load_safetensors(held.blob(held.names("slots")[0]))
    folder = artefact.path
    found: list[Subject] = []
    relinked: tuple[str, ...] = ()
    not_run: list[str] = []
    tapped: dict[str, subjects.Builder] = {}
    if _has_onnx():
        from toolchain.check import relink

        linked = relink.relink(held, artefact)
        relinked = linked.identical
        tapped = linked.tapped(folder, slots)
        found.append(subjects.staged(linked.halves, folder))
    else:
        not_run.append(
            "staged, and linking anew: the packages onnx and onnx-ir are not installed "
            "(pip install 'da3-toolchain[check]')"
        )
    for name in linked_names(held):
        graph = held.blob(f"{name}.onnx")
        twin = tapped.get(name)
        found.append(subjects.shipped(name, graph, folder, slots, tapped=twin))
    report = parity.compare(
        golden,
        found,
        slots,
        preprocessing(held),
        tolerance=held.manifest.selftest.tolerance_relative if tolerance is None else tolerance,
        threads=threads,
    ).require()
    verified = bundle.verify(path).checks
    return BundleCheck(
        path, folder, held.manifest.domain, report, verified, relinked, tuple(not_run)
    )


def linked_names(held: Bundle) -> tuple[str, ...]:
    """Return the stems of a bundle's linked graphs: ``swap-if``, ..."""
    names = [n for role in LINKED_ROLES for n in held.names(role)]
    return tuple(name.removesuffix(".onnx") for name in names)


def preprocessing(held: Bundle) -> Preprocessing:
    """Return a bundle's preprocessing as the value that :mod:`toolchain.preprocess` takes."""
    p = held.manifest.preprocess
    return Preprocessing(
        size=p.size,
        resize=p.resize,
        crop=p.crop,
        interpolation=p.interpolation,
        colour=p.colour,
        mean=_three(p.mean),
        std=_three(p.std),
    )


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


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
    return f"expected gates of this domain, got {strange}" if strange else ""


def _has_onnx() -> bool:
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnx_ir"))
