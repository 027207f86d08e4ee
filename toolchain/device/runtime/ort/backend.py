"""Run a linked model on batches: one call for both forms.

Rules of this file: ``if`` models answer one sample at a time and are looped. Slots come with each
run (``swap``) or not at all (``static``). Nothing here knows where a model came from. This is
onnxruntime's :class:`~toolchain.device.runtime.backend.Backend`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from toolchain.bundle.slots import Slots
from toolchain.core.arrays import Floats
from toolchain.device.runtime.backend import Answer, answer
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.ort.session import Session

_ELEMENTS: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype("f4"),
    "tensor(float16)": np.dtype("f2"),
}


@dataclass(frozen=True, slots=True)
class Arrays:
    """A domain's tensors as onnxruntime reads them: where they are."""

    slots: Slots


class LinkedModel:
    """A linked model in a session; the form is read from the model's own batch dimension."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.what = session.what
        self.slots = {name: shape for name, shape in session.inputs.items() if name != "image"}
        self._one_by_one = session.inputs["image"][0] == 1

    def element(self, slot: str) -> np.dtype[Any] | None:
        """Return the dtype that the model declares for a slot."""
        return _ELEMENTS.get(self._session.dtypes.get(slot, ""))

    def refusals(self, slots: Slots) -> tuple[str, ...]:  # noqa: ARG002  # Backend's
        """Return nothing: open dimensions take any size."""
        return ()

    def bind(self, slots: Slots) -> Arrays:
        """Return the arrays as they are; nothing is copied."""
        return Arrays(slots)

    def run_bound(self, images: Floats, binding: Arrays, limit: TimeLimit | None) -> Answer:
        """Answer a batch with a domain's bound tensors, as :meth:`run`."""
        return self.run(images, binding.slots, limit)

    def run(
        self,
        images: Floats,
        slots: Slots,
        limit: TimeLimit | None = None,
    ) -> Answer:
        """Answer ``[N, C, H, W]``; a static model ignores ``slots``, a swap model needs every one.

        Raises GraphError and TimeLimitError as
        :meth:`toolchain.device.runtime.ort.session.Session.run`.
        """
        feeds = {name: slots[name] for name in self.slots if name in slots}
        parts = [images[i : i + 1] for i in range(len(images))] if self._one_by_one else [images]
        runs = [self._session.run({"image": part, **feeds}, limit=limit) for part in parts]
        if len(runs) == 1:
            return answer(runs[0])
        return answer({name: np.concatenate([run[name] for run in runs]) for name in runs[0]})
