"""Split an attached model into its two halves, capturing as little as possible.

Rules of this file: the *structure* of the halves depends on what the model's forward does and on
the backbone's tensors, never on a domain's values. So the structure is made once per such
interface, and kept in a cache folder under the digest of everything that shapes it: the program
that PyTorch captured, and no name, version or file of the net's code, which may change without
them. A hit skips the exporter: the slots' values are put into the cached structure. What is
captured is verified before it is cached: BatchNorm folding by running both graphs, the split by
recomposing it, bit for bit. A cache entry whose bytes are not what its name says is captured again.

The cache saves time and is never a source of truth: whatever is returned, cached or not, has
answered as PyTorch does (:mod:`toolchain.export.graph.proof`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from toolchain.core import digest
from toolchain.core.canonical import canonical_json
from toolchain.core.errors import CaptureError, Da3Error, Fault, GraphError, SplitError
from toolchain.core.fields import ListOf, SectionOf, choice, key, whole
from toolchain.core.files import is_folder, make_folder
from toolchain.core.sealed import SealedFile, SealedKind, SealedManifest, listing
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph import store
from toolchain.export.graph.capture import translate
from toolchain.export.graph.cut import cut_model
from toolchain.export.graph.fold import fold_batchnorm
from toolchain.export.graph.halves import Halves, read_halves, recompose
from toolchain.export.graph.names import (
    DIALECT,
    HEAD_SLOTS,
    IMAGE,
    LOGITS,
    SLOTS_FILE,
    WEIGHTS_FILE,
)
from toolchain.export.graph.program import TracedProgram, noise, trace_program
from toolchain.export.graph.proof import Rounding, prove
from toolchain.training.adapt.attached import AttachedModel, arrays, domain_state, weights_digest

# Raised whenever the captured, folded or split graphs change for the same model.
STRUCTURE_VERSION = 3
# Another version of these may capture or fold another structure.
_SHAPING = ("torch", "onnx-ir", "onnxscript")
MAX_WEIGHTS_BYTES = 8 << 30
_BACKBONE, _DOMAIN = "backbone.onnx", "domain.onnx"


@dataclass(frozen=True, slots=True)
class CachedFile(SealedFile):
    """One file of a cache entry with its digest and size in bytes."""

    size: int = key(whole(0, MAX_WEIGHTS_BYTES))


@dataclass(frozen=True, slots=True)
class CacheIndex(SealedManifest):
    """The manifest of a cache entry: the two graphs and the weights."""

    FILE = "index.json"

    schema: str = key(choice("da3.split/1"))
    files: tuple[CachedFile, ...] = key(ListOf(SectionOf(CachedFile), 3, 3))

    def contradictions(self) -> Iterator[Fault]:
        """Yield a fault unless the three files are those of a split."""
        names = [entry.name for entry in self.files]
        if names != [_BACKBONE, _DOMAIN, WEIGHTS_FILE]:
            yield Fault("files", f"expected the files of a split, got {', '.join(names)}")


_ENTRY = SealedKind(
    what="cached split",
    manifest_name="index.json",
    manifest=CacheIndex,
    fix="clear the cache folder and export again",
)


@dataclass(frozen=True, slots=True)
class PackedHalves(Halves):
    """Halves ready to be written: their graphs refer to tensors in two safetensors files.

    ``weights_data`` and ``slots_data`` are the bytes of these files: the backbone's tensors and the
    domain's. ``cached`` tells whether the structure came from the cache.
    """

    weights_data: bytes
    slots_data: bytes
    cached: bool

    @property
    def backbone_graph(self) -> bytes:
        """The bytes of ``backbone.onnx``."""
        return store.to_bytes(self.backbone)

    @property
    def domain_graph(self) -> bytes:
        """The bytes of ``domain.onnx``."""
        return store.to_bytes(self.domain)


def split(model: AttachedModel, *, cache: Path | None = None) -> PackedHalves:
    """Split ``model`` into its frozen backbone and its domain, proved to answer as PyTorch does.

    With ``cache``, reuse or fill that folder. Raises CaptureError, also for an operator that
    PyTorch's exporter translates wrongly, and SplitError.
    """
    values = arrays(domain_state(model))
    traced = trace_program(model)
    entry = None if cache is None else cache / f"split-{digest.short(interface(model, traced))}"
    cached = _read_entry(entry) if entry is not None and is_folder(entry) else None
    structure, weights = cached or _capture_verified(model, traced)
    halves = _filled(structure, weights, values, cached=cached is not None)
    # Before it is cached, so that nobody finds there what PyTorch does not answer.
    prove(model, in_memory(halves))
    if entry is not None and cached is None:
        _write_entry(entry, structure, weights)
    return halves


def in_memory(halves: PackedHalves) -> Halves:
    """Return the split with its tensors instead of references into files."""
    backbone = store.from_bytes(halves.backbone_graph, what=_BACKBONE)
    domain = store.from_bytes(halves.domain_graph, what=_DOMAIN)
    store.load_tensors(backbone, WEIGHTS_FILE, halves.weights_data)
    store.load_tensors(domain, SLOTS_FILE, halves.slots_data)
    return read_halves(backbone, domain)


def interface(model: AttachedModel, traced: TracedProgram) -> str:
    """Return the digest of all that shapes a split: program, frozen tensors, slots, versions."""
    # Without the values of a domain's tensors and its number of classes, so that all domains of an
    # interface share one entry.
    slots = {
        name: [str(array.dtype), list(array.shape[1:] if name in HEAD_SLOTS else array.shape)]
        for name, array in arrays(domain_state(model)).items()
    }
    return digest.sha256(
        canonical_json(
            {
                "program": traced.digest,
                "weights": weights_digest(model),
                "slots": slots,
                "cuts": [asdict(cut) for cut in traced.cuts],
                "outputs": list(traced.names),
                "input": list(model.anatomy.input_shape),
                "dialect": asdict(DIALECT),
                "packages": {name: version(name) for name in _SHAPING},
                "structure": STRUCTURE_VERSION,
            }
        )
    )


def require_same_graphs(base: PackedHalves, changed: PackedHalves) -> None:
    """Hold the halves of a changed backbone to the base's: only the weights file may differ.

    Raises GraphError naming what else does.
    """
    for what, one, other in (
        ("backbone", base.backbone, changed.backbone),
        ("domain", base.domain, changed.domain),
    ):
        if store.to_bytes(one) != store.to_bytes(other):
            raise GraphError(
                f"expected the graph of the frozen {what} for the changed one, they differ in "
                f"{', '.join(_differing(one, other)[:5]) or 'their nodes'}",
                fix="use a method that leaves these as they are: da3, da2 or head",
            )
    if base.slots_data != changed.slots_data:
        raise GraphError(
            "expected the same slots beside the changed backbone, got others",
            fix="report this model; a domain has one set of slots",
        )


def _differing(one: ir.Model, other: ir.Model) -> list[str]:
    """Return the initializers that stand in the graphs themselves and are not the same in both."""
    sides = [
        {
            name: value.const_value.tobytes()
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
            and not isinstance(value.const_value, ir.ExternalTensor)
        }
        for model in (one, other)
    ]
    first, second = sides
    return sorted(n for n in first.keys() | second.keys() if first.get(n) != second.get(n))


def _capture_verified(model: AttachedModel, traced: TracedProgram) -> tuple[Halves, bytes]:
    captured = translate(model, traced)
    picture = noise(model)
    # Folding changes values by rounding, so it is held to a tolerance, once. The split may change
    # nothing at all, so it is held to the folded graph's very bits.
    before = _run(captured.model, picture)
    fold_batchnorm(captured.model)
    after = _run(captured.model, picture)
    halves = cut_model(captured.model, captured.cuts, captured.slots, captured.opset)
    _compare_folded(model, halves, before, after)
    _compare_recomposed(halves, after, picture)
    packed = store.pack_tensors(store.external_tensors(halves.backbone), WEIGHTS_FILE)
    store.externalise(halves.backbone, packed)
    return halves, packed.data


def _run(model: ir.Model, picture: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    # Without the runtime's optimisations: a fused node may round otherwise in the last bit.
    session = Session(store.to_bytes(model), exact=True, what="captured graph")
    return session.run({IMAGE: picture})


def _compare_folded(
    model: AttachedModel, halves: Halves, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    # A net that loses digits rounds otherwise when it is folded, and no worse.
    excess = Rounding(model, halves, arrays(domain_state(model))).excess(after, before)
    if excess is not None:
        raise CaptureError(
            f"folding BatchNorm changed {excess.name!r} by {excess.off:.3g} of its range, expected "
            f"at most {excess.most:.3g}",
            fix="look for a BatchNorm with a running variance near zero before that block",
        )


def _compare_recomposed(halves: Halves, want: Mapping[str, Any], picture: Any) -> None:
    got = _run(recompose(halves), picture)
    for name, value in want.items():
        if name in got and not np.array_equal(got[name], value, equal_nan=True):
            raise SplitError(
                f"the halves do not recompose: {name!r} differs from the captured graph",
                fix="report this model; the split must be exact",
            )


def _filled(
    structure: Halves, weights: bytes, values: Mapping[str, np.ndarray[Any, Any]], *, cached: bool
) -> PackedHalves:
    """Put a domain's tensors into a structure: values, and the class count in shapes."""
    initializers = structure.domain.graph.initializers
    if sorted(values) != sorted(structure.slots):
        raise SplitError(
            f"the structure has the slots {sorted(structure.slots)}, the domain {sorted(values)}",
            fix="clear the cache folder and export again",
        )
    for name, array in values.items():
        tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
        initializers[name].const_value = tensor
        initializers[name].shape = tensor.shape
    # Another domain of the same interface may have another number of classes.
    logits = next(v for v in structure.domain.graph.outputs if v.name == LOGITS)
    assert logits.shape is not None
    logits.shape = ir.Shape([logits.shape[0], values["head.bias"].shape[0]])
    packed = store.pack_tensors(dict(values), SLOTS_FILE)
    store.externalise(structure.domain, packed)
    return PackedHalves(
        structure.backbone,
        structure.domain,
        structure.cuts,
        structure.features,
        structure.slots,
        weights_data=weights,
        slots_data=packed.data,
        cached=cached,
    )


def _write_entry(entry: Path, structure: Halves, weights: bytes) -> None:
    contents = {
        _BACKBONE: store.to_bytes(structure.backbone),
        _DOMAIN: store.to_bytes(structure.domain),
        WEIGHTS_FILE: weights,
    }
    make_folder(entry.parent, fix="choose another cache folder, or export without one")
    index = CacheIndex(schema="da3.split/1", files=listing(CachedFile, contents))
    _ENTRY.write(entry, index, contents, overwrite=True)


def _read_entry(entry: Path) -> tuple[Halves, bytes] | None:
    """Read a cache entry; None when it is damaged, so that it is captured again."""
    try:
        index, _ = _ENTRY.read_manifest(entry)
        parts = {file.name: _ENTRY.read(entry, file) for file in index.files}
        backbone = store.from_bytes(parts[_BACKBONE], what="cached backbone")
        domain = store.from_bytes(parts[_DOMAIN], what="cached domain")
        return read_halves(backbone, domain), parts[WEIGHTS_FILE]
    # Whatever is wrong with a cache entry costs time, and must not stop the export.
    except (Da3Error, ValueError, KeyError, TypeError):
        return None
