"""Slots: the tensors of a domain, read from safetensors bytes and compared with their table.

Rules of this file: bytes in, values out; no framework. A table and a file agree only if every slot
stands on both sides exactly once, with the same shape, dtype and digest. Every value must be
finite: a NaN that reaches a gate would silently close it. This file does not know what a slot is
for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.bundle.manifest import Slot
from toolchain.core.digest import BackgroundDigests
from toolchain.core.errors import BundleError, Fault
from toolchain.core.safetensors import Place, read_places
from toolchain.core.words import raise_faults

Slots = Mapping[str, npt.NDArray[Any]]
"""A domain's tensors by slot name."""

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I32": "int32",
    "I64": "int64",
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}


def slot_table(data: bytes, what: str = "slots.safetensors") -> tuple[Slot, ...]:
    """Return the table of the slots in the safetensors file ``data``, sorted by name.

    ``what`` names the file in messages. Raises BundleError for a file that is not safetensors, a
    dtype outside the format's list, and values that are not finite.
    """
    try:
        places = sorted(read_places(data), key=lambda place: place.name)
    except ValueError as err:
        raise BundleError(
            f"{what}: expected a safetensors file, got {err}", fix="export the domain again"
        ) from err
    faults: list[Fault] = []
    # Hashing runs on a second thread while this one looks for values that are not finite.
    digests = BackgroundDigests([place.data for place in places])
    slots = [_slot(place, faults) for place in places]
    raise_faults(what, faults)
    return tuple(
        Slot(name=place.name, shape=place.shape, dtype=dtype, digest=digest)
        for place, dtype, digest in zip(places, slots, digests.result(), strict=True)
    )


def check_slots(expected: Sequence[Slot], data: bytes, what: str = "slots.safetensors") -> None:
    """Compare the slots in ``data`` with the table ``expected``.

    Raises BundleError naming every slot that is missing, not expected, or has another shape,
    dtype or digest, and what :func:`slot_table` raises.
    """
    listed = {slot.name: slot for slot in expected}
    present = {slot.name: slot for slot in slot_table(data, what)}
    raise_faults(what, _differences(listed, present))


def slot_arrays(data: bytes | memoryview) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of the verified slots file ``data`` as read-only views of its bytes.

    Raises BundleError for bfloat16, which numpy does not have.
    """
    return {place.name: view(place) for place in read_places(data)}


def view(place: Place) -> npt.NDArray[Any]:
    """Return a tensor of a safetensors file without a copy: read-only, shape and dtype as written.

    Raises BundleError for bfloat16, which numpy does not have.
    """
    dtype = _DTYPES[place.dtype]
    if dtype == "bfloat16":
        raise BundleError(
            f"slot {place.name}: expected a dtype that numpy has, got bfloat16",
            fix="export the domain with float32 tensors",
        )
    kind = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(place.data, kind).reshape(place.shape)


def _differences(listed: dict[str, Slot], present: dict[str, Slot]) -> Iterable[Fault]:
    for name in sorted(listed.keys() | present.keys()):
        if name not in present:
            yield Fault(name, "missing slot: the manifest lists it, the file does not hold it")
        elif name not in listed:
            yield Fault(name, "extra slot: the file holds it, the manifest does not list it")
        else:
            for key in ("shape", "dtype", "digest"):
                want, got = getattr(listed[name], key), getattr(present[name], key)
                if want != got:
                    yield Fault(name, f"expected {key} {want}, got {got}")


def _slot(place: Place, faults: list[Fault]) -> str:
    """Return the dtype as the format calls it; append what is wrong with the values."""
    dtype = _DTYPES.get(place.dtype, "")
    if not dtype:
        known = ", ".join(_DTYPES.values())
        faults.append(Fault(place.name, f"expected one of {known}, got dtype {place.dtype}"))
    elif not _finite(dtype, place.data):
        faults.append(Fault(place.name, "expected finite values, got NaN or infinity"))
    return dtype


def _finite(dtype: str, data: memoryview) -> bool:
    if dtype == "bfloat16":
        # numpy has no bfloat16: its exponent bits are all ones for NaN and infinity.
        bits = np.frombuffer(data, "<u2")
        return bool(np.all(bits & 0x7F80 != 0x7F80))
    if not dtype.startswith("float"):
        return True
    values = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
    return bool(np.isfinite(values).all())
