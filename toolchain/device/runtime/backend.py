"""What an engine needs of whatever computes: onnxruntime or TensorRT.

Rules of this file: interfaces only. A backend takes a domain's tensors once (``bind``) and puts
them where it reads them; requests then name the binding. A binding lives as long as something
refers to it, and what it occupies is given back with the last reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from toolchain.bundle.slots import Slots
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.ort.backend import Answer, Floats

Shape = tuple[int | str | None, ...]


class Binding(Protocol):
    """A domain's tensors as a backend holds them."""

    @property
    def slots(self) -> Slots:
        """The arrays in this process's memory that the backend reads at every run, by name."""
        ...


B = TypeVar("B", bound=Binding)


class Backend(Protocol[B]):
    """A loaded model that any number of threads may run."""

    @property
    def what(self) -> str:
        """What messages call it."""
        ...

    @property
    def slots(self) -> Mapping[str, Shape]:
        """Declared shape of every slot; what is no integer is open."""
        ...

    def element(self, slot: str) -> np.dtype[Any] | None:
        """Return the dtype that a slot must have, None for one that no domain can have."""
        ...

    def refusals(self, slots: Slots) -> tuple[str, ...]:
        """Return why tensors of the declared shapes cannot be run all the same, a line each."""
        ...

    def bind(self, slots: Slots) -> B:
        """Put a domain's tensors, every slot among them, where runs read them.

        Raises GraphError for tensors that do not fit, DeviceMemoryError where there is no room.
        """
        ...

    def run_bound(self, images: Floats, binding: B, limit: TimeLimit | None) -> Answer:
        """Answer float32 ``[N, C, H, W]``; raises GraphError, TimeLimitError and DeviceError."""
        ...
