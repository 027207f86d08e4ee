"""Run staged segments one after another, the host reading each gate.

Rules of this file: per sample, an open gate sends its row to the ``opened`` segment and a closed
one to the ``closed`` segment; no arithmetic happens here, only routing of rows. Slow and plain on
purpose: the linker's flavours are compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolchain.bundle.slots import Slots
from toolchain.core.arrays import Array, Bools, Floats
from toolchain.device.runtime.backend import Answer, answer
from toolchain.device.runtime.ort.session import Session


@dataclass(frozen=True, slots=True)
class Segments:
    """The sessions of one site and the names that route between them."""

    gate: str | None
    result: str
    side: Session
    opened: Session
    closed: Session | None


class StagedRunner:
    """Segments in running order; slots that segments read are run-time inputs as in ``swap``."""

    def __init__(self, sites: Sequence[Segments], tail: Session) -> None:
        self._sites = tuple(sites)
        self._tail = tail
        self._gates = tuple(site.gate for site in sites if site.gate is not None)

    def run(self, images: Floats, slots: Slots) -> Answer:
        """Answer a batch of normalised pictures, float32 ``[N, C, H, W]``."""
        values: dict[str, Array] = {**slots, "image": images}
        results: dict[str, Floats] = {}
        for site in self._sites:
            values.update(_run(site.side, values))
            values[site.result] = _routed(site, values, slots)
            results[site.result] = values[site.result]
            if site.gate is not None:
                results[site.gate] = values[site.gate]
        return answer({**results, **_run(self._tail, values)}, self._gates)


def _run(session: Session, values: Mapping[str, Array]) -> dict[str, Floats]:
    return session.run({name: values[name] for name in session.inputs})


def _routed(site: Segments, values: Mapping[str, Array], slots: Slots) -> Floats:
    """Run each row through its branch and put the rows back in order."""
    if site.gate is None or site.closed is None:
        return _run(site.opened, values)[site.result]
    opened = values[site.gate].reshape(-1) >= 0
    parts: list[tuple[Bools, Floats]] = []
    for session, rows in ((site.opened, opened), (site.closed, ~opened)):
        if rows.any():
            # Slots belong to the whole batch; only maps have a row per picture.
            feeds = {n: values[n] if n in slots else values[n][rows] for n in session.inputs}
            parts.append((rows, session.run(feeds)[site.result]))
    merged = np.empty((len(opened), *parts[0][1].shape[1:]), parts[0][1].dtype)
    for rows, result in parts:
        merged[rows] = result
    return merged
