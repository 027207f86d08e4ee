"""Patches: what a domain has in place of tensors of its backbone, as one safetensors file.

Rules of this file: bytes in, values out; no framework; it opens no file and knows no method. A
patch is the difference between two weights files with the same tensors, by tensor name:

* absent: the backbone's tensor;
* float32 in the backbone's shape: the tensor that takes its place;
* uint8 of one dimension: a bit per element, little-endian within a byte, one where the backbone's
  element stays and zero where it is 0; the bits that fill the last byte are zero;
* float32 of one dimension where the backbone's tensor has more: a factor per output channel (axis
  0), by which the backbone's elements are multiplied, once, in float32.

The form with the fewest bytes is taken. The first three give the changed tensor to the bit. Factors
give it within ``SCALED_WITHIN``, and from then on the product is the domain's tensor.

Only float32 tensors can be replaced. The manifest gives the digest of the patched weights, and
whoever applies a patch compares it: a domain runs on the very weights that were compared with
PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from toolchain.bundle.archive import LIMIT_BYTES
from toolchain.bundle.manifest import Patch
from toolchain.core.arrays import Floats
from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, Fault, GraphError, UsageError
from toolchain.core.safetensors import Place, read_places
from toolchain.core.words import raise_faults

PATCH_NAME = "patch.safetensors"
SCALED_WITHIN = 1e-6
"""Largest error of a scaled element, relative to the largest of its channel.

A norm is folded into the base's tensor and into the changed one, with one rounding each. The factor
and the product round once more. Four roundings of 2**-24 are 2.4e-7; the rest is room for kernels
that were rounded before.
"""

_DENSE, _MASK = "F32", "U8"
_EXPORT = "export the domain again"
_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Patched:
    """A patch that was made: what the manifest says of it, its bytes, and the weights it gives."""

    about: Patch
    data: bytes
    weights: bytes


def make_patch(base: bytes, changed: bytes) -> Patched | None:
    """Return what turns the weights file ``base`` into ``changed``; None where nothing differs.

    A tensor can become a mask if each of its elements is the base's or zero. It can become factors
    if it is the base's times one factor per output channel. What made it so does not matter. With
    factors the returned ``weights`` are not ``changed`` to the last bit; check the returned ones.
    Raises BundleError for bytes that are no safetensors, GraphError for files with other tensors,
    or a difference that is not one of float32; UsageError for a patch that no bundle can hold.
    """
    old, new = _by_name(base, "base weights"), _by_name(changed, "changed weights")
    if {n: _kind(p) for n, p in old.items()} != {n: _kind(p) for n, p in new.items()}:
        odd = sorted(n for n in old.keys() | new.keys() if not _alike(old.get(n), new.get(n)))
        raise GraphError(
            f"expected the tensors of the base in other values, got other ones: {odd[:5]}",
            fix="change values only, not shapes or layers",
        )
    tensors: dict[str, _Bytes | Floats] = {}
    for name, place in new.items():
        if (form := _smallest_form(old[name], place)) is not None:
            tensors[name] = form
    if not tensors:
        return None
    data = save(tensors)
    if len(data) > LIMIT_BYTES:
        raise UsageError(
            f"the domain's own tensors take {len(data)} bytes, expected at most {LIMIT_BYTES}",
            fix="use a method that changes less of the backbone, such as da3 or piggyback",
        )
    masks = sum(array.dtype == np.uint8 for array in tensors.values())
    # The reader's own arithmetic: the manifest then has the digest of what a device will compute.
    weights, scaled = _applied(base, data, PATCH_NAME)
    about = Patch(
        tensors=len(tensors),
        masks=masks,
        scaled=scaled,
        of=len(_floats(old)),
        digest=sha256(weights),
    )
    return Patched(about=about, data=data, weights=weights)


def check_patch(expected: Patch, data: bytes, what: str = PATCH_NAME) -> None:
    """Compare the patch file ``data`` with the manifest, as far as that goes without a backbone.

    Raises BundleError for a file that is not safetensors, dtypes and shapes that no patch has,
    values that are not finite, and another number of tensors or masks than ``expected`` says.
    Factors and a tensor of one dimension look alike here: only the backbone tells them apart.
    """
    places = _by_name(data, what)
    faults = [fault for place in places.values() for fault in _faults(place)]
    for name, count, want in (
        ("tensors", len(places), expected.tensors),
        ("masks", sum(p.dtype == _MASK for p in places.values()), expected.masks),
    ):
        if count != want:
            faults.append(Fault(name, f"expected {want} as the manifest says, got {count}"))
    raise_faults(what, faults)


def apply_patch(base: bytes, expected: Patch, data: bytes, what: str = PATCH_NAME) -> bytes:
    """Return the weights file that the patch ``data`` makes of the weights file ``base``.

    Raises BundleError naming every tensor that the base lacks, or that does not fit it, for
    another number of scaled tensors than ``expected`` says, and for a result with another digest.
    """
    check_patch(expected, data, what)
    weights, scaled = _applied(base, data, what)
    if scaled != expected.scaled:
        message = f"expected {expected.scaled} as the manifest says, got {scaled}"
        raise_faults(what, [Fault("scaled", message)])
    if (digest := sha256(weights)) != expected.digest:
        raise BundleError(
            f"{what}: expected the patched weights {expected.digest}, got {digest}", fix=_EXPORT
        )
    return weights


def _applied(base: bytes, data: bytes, what: str) -> tuple[bytes, int]:
    """Return the patched weights file and how many of its tensors were scaled."""
    old = _by_name(base, "the backbone's weights")
    faults: list[Fault] = []
    weights, scaled = bytearray(base), 0
    for name, place in _by_name(data, what).items():
        if fault := _misfit(place, old.get(name)):
            faults.append(Fault(name[:200], fault))
            continue
        here = old[name]
        # A view of the new file: what is written into it is written into the file.
        target = np.frombuffer(weights, "<f4", len(here.data) // 4, here.offset)
        if place.dtype == _MASK:
            target[~_bits(place)[: target.size]] = 0
        elif place.shape == here.shape:
            target[:] = np.frombuffer(place.data, "<f4")
        else:
            scaled += 1
            target[:] = _scaled(_rows(here), np.frombuffer(place.data, "<f4")).ravel()
            # Finite factors and elements may still overflow in their product.
            if not np.isfinite(target).all():
                faults.append(Fault(name[:200], "expected finite products, got NaN or infinity"))
    raise_faults(what, faults)
    return bytes(weights), scaled


def _by_name(data: bytes, what: str) -> dict[str, Place]:
    try:
        return {place.name: place for place in read_places(data)}
    except ValueError as err:
        raise BundleError(f"{what}: expected a safetensors file, got {err}", fix=_EXPORT) from err


def _floats(places: dict[str, Place]) -> list[str]:
    return [name for name, place in places.items() if place.dtype == _DENSE]


def _kind(place: Place) -> tuple[str, tuple[int, ...]]:
    return place.dtype, place.shape


def _alike(one: Place | None, other: Place | None) -> bool:
    return one is not None and other is not None and _kind(one) == _kind(other)


def _smallest_form(base: Place, changed: Place) -> _Bytes | Floats | None:
    """Return what a patch holds of one tensor; None where at most the signs of zeros differ.

    Of two forms with as many bytes the exact one is taken.
    """
    if bytes(base.data) == bytes(changed.data):
        return None
    if base.dtype != _DENSE:
        raise GraphError(
            f"{base.name}: expected float32 where a domain differs, got {base.dtype}",
            fix="keep tensors of other types as the backbone has them",
        )
    old, new = np.frombuffer(base.data, "<f4"), np.frombuffer(changed.data, "<f4")
    # -0.0 equals 0.0: such a tensor computes the same, so it needs no patch.
    same = old == new
    if same.all():
        return None
    forms: list[_Bytes | Floats] = [new.astype(np.float32).reshape(base.shape)]
    if (same | (new == 0)).all():
        forms.insert(0, np.packbits(same, bitorder="little"))
    if (factors := _factors(base, changed)) is not None:
        forms.append(factors)
    # min() takes the first of equals, and the exact forms stand before the factors.
    return min(forms, key=lambda form: form.nbytes)


def _factors(base: Place, changed: Place) -> Floats | None:
    """Return the factor of each output channel, [O]; None where factors do not give ``changed``.

    A factor minimises the squared error of its channel; a channel of zeros has the factor 1.
    """
    if len(base.shape) < 2:
        return None
    old, new = _rows(base), _rows(changed)
    # In float64, so that the sums add no rounding of their own to the four that are allowed.
    wide = old.astype(np.float64)
    power = (wide * wide).sum(axis=1)
    # Values that are not finite need no warning: they fail the comparison below.
    with np.errstate(over="ignore", invalid="ignore"):
        best = np.divide((wide * new).sum(axis=1), power, out=np.ones_like(power), where=power > 0)
        factors = best.astype(np.float32)
        error = np.abs(_scaled(old, factors).astype(np.float64) - new).max(axis=1)
        near = error <= SCALED_WITHIN * np.abs(new).max(axis=1).astype(np.float64)
    return factors if near.all() else None


def _scaled(rows: Floats, factors: Floats) -> Floats:
    """Return the rows [O, n] times their factors [O]: one float32 product per element."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        products: Floats = rows * factors[:, None]
    return products


def _rows(place: Place) -> Floats:
    """Return a float32 tensor [O, ...] as [O, n]."""
    return np.frombuffer(place.data, "<f4").reshape(place.shape[0], prod(place.shape[1:]))


def _faults(place: Place) -> Iterator[Fault]:
    """Yield what no patch of any backbone holds."""
    name = place.name[:200]
    if place.dtype not in (_DENSE, _MASK):
        yield Fault(name, f"expected F32, or U8 for a mask, got {place.dtype}")
    elif place.dtype == _MASK and len(place.shape) != 1:
        yield Fault(name, f"expected a mask of one dimension, got {list(place.shape)}")
    elif place.dtype == _DENSE and not np.isfinite(np.frombuffer(place.data, "<f4")).all():
        yield Fault(name, "expected finite values, got NaN or infinity")


def _misfit(place: Place, base: Place | None) -> str:
    """Return why the backbone cannot take ``place``, or nothing."""
    if base is None:
        return "expected a tensor of the backbone, got a name that it has not"
    if base.dtype != _DENSE:
        return f"expected a float32 tensor of the backbone, it has {base.dtype}"
    if place.dtype == _DENSE:
        # Its own shape, or one factor per output channel.
        known = [base.shape] + ([base.shape[:1]] if len(base.shape) > 1 else [])
        words = " or ".join(str(list(shape)) for shape in known)
        return "" if place.shape in known else f"expected shape {words}, got {list(place.shape)}"
    count = len(base.data) // 4
    if len(place.data) != (size := -(-count // 8)):
        return f"expected {size} bytes for a mask of {count} bits, got {len(place.data)}"
    return "expected zeros behind the last bit" if _bits(place)[count:].any() else ""


def _bits(place: Place) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(place.data, np.uint8), bitorder="little").astype(np.bool_)
