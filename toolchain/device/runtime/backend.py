"""What a session needs of whatever computes: onnxruntime or TensorRT.

Rules of this file: interfaces, and the values that cross them; it imports neither. A backend takes
a domain's tensors once (``bind``) and puts them where it reads them. Requests name the binding.
A binding lives as long as something refers to it. What it occupies is given back with the last
reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from toolchain.bundle.slots import Slots
from toolchain.core.arrays import Floats
from toolchain.device.runtime.limit import TimeLimit

# An integer is fixed; a name or None is open.
Shape = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says of a batch.

    ``logits``: float32 ``[N, classes]``; ``gates``: gate logits ``[N, G]`` (G may be 0), open at
    zero and above; ``taps``: block results ``[N, ...]`` by name, where the model gives them.
    """

    logits: Floats
    gates: Floats
    taps: Mapping[str, Floats]


def answer(values: Mapping[str, Floats], gates: Sequence[str] = ()) -> Answer:
    """Sort a model's outputs by name into an :class:`Answer`.

    ``gates``: the names of outputs that hold one gate's logits each, ``[N, 1]``. A model that has
    all gates in one output calls that ``gates``.
    """
    logits = values["logits"]
    none = np.zeros((len(logits), 0), np.float32)
    together = np.concatenate([values[g] for g in gates], axis=1) if gates else none
    taps = {name: value for name, value in values.items() if name.startswith("out.")}
    return Answer(logits=logits, gates=values.get("gates", together), taps=taps)


class Runnable(Protocol):
    """Anything that answers a batch of normalised pictures: linked or staged."""

    def run(self, images: Floats, slots: Slots) -> Answer:
        """Answer ``images``, float32 ``[N, C, H, W]``, with the given slot tensors."""
        ...


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
        """Declared shape of every slot; a dimension that is no integer is open."""
        ...

    def element(self, slot: str) -> np.dtype[Any] | None:
        """Return the dtype that a slot must have, None for a slot that no domain can fill."""
        ...

    def refusals(self, slots: Slots) -> tuple[str, ...]:
        """Return why tensors of the declared shapes still cannot be run, a line each."""
        ...

    def bind(self, slots: Slots) -> B:
        """Put a domain's tensors, every slot among them, where runs read them.

        Raises GraphError for tensors that do not fit, DeviceMemoryError where there is no room.
        """
        ...

    def run_bound(self, images: Floats, binding: B, limit: TimeLimit | None) -> Answer:
        """Answer float32 ``[N, C, H, W]``; raises GraphError, TimeLimitError and DeviceError."""
        ...


def fits(declared: Shape | None, shape: Sequence[int] | None) -> bool:
    """Whether a tensor of ``shape`` may be fed where ``declared`` stands; open dimensions take any.

    None stands for no such input, or no such tensor.
    """
    if declared is None or shape is None:
        return declared is shape
    return len(declared) == len(shape) and all(
        not isinstance(want, int) or want == got for want, got in zip(declared, shape, strict=True)
    )
