"""Golden data: pictures and what the reference says of them, in both states of every gate.

Rules of this file: numpy and safetensors only; values, their bytes and their limits. It neither
runs a model nor chooses pictures.

A *case* is one picture and a shift per gate, which is added to the gate's bias. In a natural case
every shift is zero. Some gates never take one of their two states on the data; a case forces such a
gate, with a shift of ``FORCE`` up or down.

A file holds each picture once, and cases name it by its number. Nobody here lays the pictures of
all cases out: a small file could ask for more memory than a machine has. Whoever runs cases takes
the pictures of one batch (:meth:`Golden.images`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as safetensors_save

from toolchain.bundle.manifest import GateStates, Manifest, Selftest
from toolchain.bundle.slots import view
from toolchain.core.canonical import parse_json
from toolchain.core.errors import BundleError
from toolchain.core.safetensors import Place, read_metadata, read_places

if TYPE_CHECKING:
    from toolchain.bundle.package import Bundle

# Far beyond any logit that a gate has of its own.
FORCE = 1000.0
PROBES = 8
MAX_CASES = 4096
# All cases' pictures, laid out. That is 1,700 cases of 448 px, or 20 of the largest picture.
MAX_PIXEL_BYTES = 1 << 30
# What is there once per case. ``picture`` says which of ``pixels`` a case shows.
_PER_CASE = {"shifts": 2, "logits": 2, "gates": 2, "probes": 3}
_STORED = {"pixels": ("U8", 4), "picture": ("I32", 1)} | {
    name: ("F32", rank) for name, rank in _PER_CASE.items()
}
TENSORS = frozenset(_STORED)
_EXPORT = "export the domain again"


@dataclass(frozen=True, slots=True)
class Golden:
    """K cases of a domain.

    ``pixels`` uint8 ``[P, S, S, 3]``; ``picture`` int ``[K]``: which of them each case shows, None
    where case k shows picture k; ``shifts`` and ``gates`` (logits, shift included) float32
    ``[K, G]`` in the order of ``gate_sites``; ``logits`` float32 ``[K, classes]``; ``probes``
    float32 ``[K, B, PROBES]``: each adapted block's output at fixed places (:func:`probe`), in the
    order of ``sites``.
    """

    pixels: npt.NDArray[np.uint8]
    shifts: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    gates: npt.NDArray[np.float32]
    probes: npt.NDArray[np.float32]
    gate_sites: tuple[str, ...]
    sites: tuple[str, ...]
    picture: npt.NDArray[np.signedinteger[Any]] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def images(self, rows: npt.NDArray[Any] | Sequence[int] | slice) -> npt.NDArray[np.uint8]:
        """Return the pictures that some of the cases show, uint8 ``[n, S, S, 3]``."""
        shown: npt.NDArray[np.uint8] = self.pixels[self._shown()[rows]]
        return shown

    def _shown(self) -> npt.NDArray[np.signedinteger[Any]]:
        return np.arange(len(self)) if self.picture is None else self.picture

    @property
    def natural(self) -> npt.NDArray[np.bool_]:
        """Which cases have no forced gate, ``[K]``."""
        forced: npt.NDArray[np.bool_] = (self.shifts != 0).any(axis=1)
        return ~forced

    def states(self) -> dict[str, GateStates]:
        """Count, per gate, the cases that find it open and closed."""
        # Shifts are part of the gates' logits, so the sign alone tells the state.
        opened = self.gates >= 0
        return {
            site: GateStates(
                int(opened[:, i].sum()), int((~opened[:, i]).sum()), bool(self.shifts[:, i].any())
            )
            for i, site in enumerate(self.gate_sites)
        }

    def take(self, rows: npt.NDArray[Any] | Sequence[int] | slice) -> Golden:
        """Return some of the cases; ``rows``: int ``[n]`` in any order, bool ``[K]``, a slice."""
        arrays = {name: getattr(self, name)[rows] for name in _PER_CASE}
        return replace(self, **arrays, picture=self._shown()[rows])

    def to_bytes(self) -> bytes:
        """Serialise; the same cases give the same bytes."""
        # One metadata key only: safetensors keeps no order among several.
        names = json.dumps({"gates": self.gate_sites, "sites": self.sites}, sort_keys=True)
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _PER_CASE}
        # Cases that force gates show pictures of natural ones: each picture is stored once.
        rows, arrays["picture"] = _distinct(self.pixels, self._shown())
        arrays["pixels"] = np.ascontiguousarray(self.pixels[rows])
        return safetensors_save(arrays, metadata={"names": names})


def read_golden(data: bytes, what: str) -> Golden:
    """Parse golden data; raises BundleError for anything but what ``to_bytes`` writes.

    The arrays are views of ``data``, so a file costs no memory beside its own bytes.
    """
    try:
        places = {place.name: place for place in read_places(data)}
        names = parse_json(read_metadata(data)["names"])
        gates, sites = tuple(map(str, names["gates"])), tuple(map(str, names["sites"]))
    except (ValueError, KeyError, TypeError) as err:
        raise BundleError(f"{what}: expected golden data, got: {err}", fix=_EXPORT) from err
    if fault := _form_fault(places):
        raise BundleError(f"{what}: {fault}", fix=_EXPORT)
    arrays = {name: view(place) for name, place in places.items()}
    if fault := _value_fault(arrays, gates, sites):
        raise BundleError(f"{what}: {fault}", fix=_EXPORT)
    return Golden(**arrays, gate_sites=gates, sites=sites)


def golden_of(opened: Bundle) -> Golden:
    """Return a bundle's golden data, compared with its manifest.

    Raises BundleError if there are none, or if they are those of another domain.
    """
    names = opened.names("golden")
    if not names:
        raise BundleError(
            "the bundle holds no golden data, expected one file of role 'golden'",
            fix=_EXPORT,
        )
    golden = read_golden(opened.blob(names[0]), names[0])
    if fault := _foreign(golden, opened.manifest):
        raise BundleError(f"{names[0]}: {fault}", fix=_EXPORT)
    return golden


def _foreign(golden: Golden, manifest: Manifest) -> str:
    """Return what shows that the golden data are another domain's, or nothing."""
    classes, outputs = len(manifest.classes), golden.logits.shape[1]
    if outputs != classes:
        return f"expected logits of {classes} classes, got {outputs}"
    if (side := golden.pixels.shape[1]) != manifest.preprocess.size:
        return f"expected pictures of {manifest.preprocess.size} pixels, got {side}"
    slots = {slot.name for slot in manifest.adaptor.slots}
    strange = [site for site in golden.gate_sites if f"{site}.gate.bias" not in slots]
    if strange:
        return f"expected gates of this domain, got {strange}"
    return _misdescribed(golden, manifest.selftest)


def _misdescribed(golden: Golden, selftest: Selftest) -> str:
    """Return what the manifest says of the golden data otherwise than they are, or nothing."""
    if selftest.samples != len(golden):
        return f"expected {selftest.samples} samples as the manifest says, got {len(golden)}"
    expected, actual = dict(selftest.gate_states), golden.states()
    if expected != actual:
        return f"expected the gate states {expected} as the manifest says, got {actual}"
    return ""


def _distinct(
    pixels: npt.NDArray[np.uint8], shown: npt.NDArray[Any]
) -> tuple[list[int], npt.NDArray[np.int32]]:
    """Return the rows of distinct pictures that are shown, and for each case which it shows."""
    contents = [picture.tobytes() for picture in pixels]
    first: dict[bytes, int] = {}
    places = [first.setdefault(contents[row], len(first)) for row in shown]
    rows = [contents.index(content) for content in first]
    return rows, np.asarray(places, np.int32)


def _form_fault(places: Mapping[str, Place]) -> str:
    """Return which tensor is missing, not expected, or of another dtype or rank, or nothing."""
    if set(places) != TENSORS:
        return f"expected the tensors {sorted(TENSORS)}, got {sorted(places)}"
    for name, (dtype, rank) in _STORED.items():
        place = places[name]
        if place.dtype != dtype or len(place.shape) != rank:
            actual = f"{place.dtype} of rank {len(place.shape)}"
            return f"{name}: expected {dtype} of rank {rank}, got {actual}"
    return ""


def _value_fault(
    arrays: Mapping[str, npt.NDArray[Any]], gates: tuple[str, ...], sites: tuple[str, ...]
) -> str:
    """Return what is wrong with the arrays' sizes and values, or nothing."""
    if fault := _count_fault(arrays) or _shape_fault(arrays, gates, sites):
        return fault
    for name in _PER_CASE:
        if not np.isfinite(arrays[name]).all():
            return f"{name}: expected finite values"
    return ""


def _count_fault(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    pixels, picture = arrays["pixels"], arrays["picture"]
    count = len(picture)
    if not 1 <= count <= MAX_CASES or any(len(arrays[name]) != count for name in _PER_CASE):
        return f"expected 1 to {MAX_CASES} cases in every tensor, got {count}"
    # Every stored picture is shown by some case, so no picture hides in the file.
    if not np.array_equal(np.unique(picture), np.arange(len(pixels))):
        return f"picture: expected every one of {len(pixels)} pictures, and no other"
    if (size := count * pixels[0].nbytes) > MAX_PIXEL_BYTES:
        return f"expected pictures of at most {MAX_PIXEL_BYTES} bytes in all cases, got {size}"
    return ""


def _shape_fault(
    arrays: Mapping[str, npt.NDArray[Any]], gates: tuple[str, ...], sites: tuple[str, ...]
) -> str:
    widths = (arrays["shifts"].shape[1], arrays["gates"].shape[1], arrays["probes"].shape[1])
    if widths != (len(gates), len(gates), len(sites)):
        return f"expected {len(gates)} gates and {len(sites)} blocks, got {widths}"
    height, width, channels = arrays["pixels"].shape[1:]
    if height != width or channels != 3 or not height:
        return f"pixels: expected square pictures of 3 channels, got {height}x{width}x{channels}"
    if not arrays["logits"].shape[1] or arrays["probes"].shape[2] != PROBES:
        return f"expected logits and {PROBES} probes a block, got none or another number"
    return ""


def probe(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a block's output ``[N, ...]`` at ``PROBES`` evenly spread places, ``[N, PROBES]``.

    Small maps repeat places. A few values of each block are enough to name the first block that
    diverges.
    """
    flat = block.reshape(len(block), -1)
    places = np.linspace(0, flat.shape[1] - 1, PROBES).round().astype(np.int64)
    return np.ascontiguousarray(flat[:, places])


def shifted(
    slots: Mapping[str, npt.NDArray[Any]], gate_sites: Sequence[str], shift: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[Any]]:
    """Return the slots with ``shift`` ``[G]`` added to the gates' biases."""
    changed = dict(slots)
    for site, amount in zip(gate_sites, shift, strict=True):
        name = f"{site}.gate.bias"
        changed[name] = (slots[name] + np.float32(amount)).astype(np.float32)
    return changed
