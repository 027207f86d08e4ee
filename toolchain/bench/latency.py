"""What gates cost and save: latency by state, and block by block.

Rules of this file: a state is set through the gates' bias slots alone, so one session answers in
all states. What a gate costs comes from two static models that differ in that gate only, while all
other gates are closed at run time, which leaves the least around it. Both models are built anew
several times, and at most two sessions exist at a time. Batch 1, without preprocessing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from toolchain.bench.materials import Materials
from toolchain.bundle.linkage import SWAP_IF
from toolchain.bundle.slots import Slots, slot_arrays
from toolchain.core.timing import Call, Notify, Timing, clock_of, interleaved, rebuilt
from toolchain.device.runtime.ort.session import Session
from toolchain.device.runtime.trt.skipping import forced

STATES = ("open", "half", "closed")
BUILDS = 5


def measure(
    materials: Materials, *, threads: int, rounds: int, notify: Notify = lambda _: None
) -> dict[str, Any]:
    """Return ``states`` (timings by contender, the first is the measure) and ``blocks``.

    ``blocks`` by gated block: ``gain``, what closing it alone saves from all open; ``cost``, what
    deciding it at run time takes while it is open (None without static graphs); ``break_even``, a
    lower bound where the cost is not measurable.
    ``together``: the same of all gates at once, whose costs do not add up exactly, from the states.
    """
    models = _Models(materials, threads)
    states = models.time(models.states(), rounds, lambda text: notify(f"states, {text}"))
    skipped = models.time(models.skips(), rounds, lambda text: notify(f"skipping, {text}"))
    blocks = {}
    for gate in models.gates:
        notify(f"gate of {gate}")
        blocks[gate] = _block(skipped[gate], models.cost(gate, rounds))
    return {
        "clock": clock_of(threads),
        "states": {name: asdict(timing) for name, timing in states.items()},
        "blocks": blocks,
        "together": _together(states),
    }


def break_even(gain_ms: float, cost_ms: float) -> float | None:
    """Return the open rate below which a gate pays: ``1 - cost / gain``, between 0 and 1.

    A gate that is open with rate r saves ``(1 - r) * gain`` and always costs ``cost``. None where
    skipping the block gains nothing.
    """
    return min(1.0, max(0.0, 1 - cost_ms / gain_ms)) if gain_ms > 0 else None


def _together(states: Mapping[str, Timing]) -> dict[str, float | None] | None:
    if "static, open" not in states:
        return None
    opened = states["swap, open"].median_ms
    gain = opened - states["swap, closed"].median_ms
    cost = opened - states["static, open"].median_ms
    return {"gain_ms": gain, "cost_ms": cost, "break_even": break_even(gain, max(0.0, cost))}


def _block(skipped: Timing, decided: Timing | None) -> dict[str, Any]:
    low, high = skipped.difference_quartiles_ms
    gain = _figure(-skipped.difference_ms, (-high, -low), skipped.noise_ms)
    if decided is None:
        return {"gain": gain, "cost": None, "break_even": None}
    cost = _figure(decided.difference_ms, decided.difference_quartiles_ms, decided.noise_ms)
    # A cost within the noise is at most as large as the noise allows.
    most = cost["ms"] if cost["measurable"] else cost["ms"] + cost["noise_ms"]
    rate = break_even(gain["ms"], max(0.0, most)) if gain["measurable"] else None
    return {"gain": gain, "cost": cost, "break_even": rate}


def _figure(ms: float, quartiles: tuple[float, float], noise: float) -> dict[str, Any]:
    return {"ms": ms, "quartiles_ms": quartiles, "noise_ms": noise, "measurable": abs(ms) > noise}


class _Models:
    """Sessions over the first domain, and its slots in every state."""

    def __init__(self, materials: Materials, threads: int) -> None:
        bundle = materials.open()
        self.materials = materials
        self.threads = threads
        self.slots: Slots = slot_arrays(bundle.blob(bundle.names("slots")[0]))
        blocks = bundle.manifest.gates.blocks
        self.gates = [b.name for b in blocks if f"{b.name}.gate.bias" in self.slots]
        side = bundle.manifest.preprocess.size
        self.image = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
        self.swap = Session(
            bundle.blob(SWAP_IF.file), folder=materials.backbone, threads=threads, what=SWAP_IF.stem
        )

    def time(self, calls: Mapping[str, Call], rounds: int, notify: Notify) -> dict[str, Timing]:
        return interleaved(calls, rounds=rounds, clock=clock_of(self.threads), notify=notify)

    def states(self) -> dict[str, Call]:
        """Plain first, where it is there, then ours in every state."""
        statics = {name for name in ("plain", *STATES) if name in self.materials.statics}
        calls = {"plain": self._static("plain")} if "plain" in statics else {}
        calls |= {f"swap, {state}": self._swap(self._opened(state)) for state in STATES}
        calls |= {f"static, {s}": self._static(s) for s in STATES if s in statics}
        return calls

    def skips(self) -> dict[str, Call]:
        """All open first, then all open but one."""
        every = set(self.gates)
        calls = {"open": self._swap(every)}
        return calls | {gate: self._swap(every - {gate}) for gate in self.gates}

    def cost(self, gate: str, rounds: int) -> Timing | None:
        """Time the gate decided at run time, and open, against the same gate resolved."""
        if f"open {gate}" not in self.materials.statics:
            return None
        slots = forced(self.slots, self.gates, {gate})

        def build() -> dict[str, Call]:
            resolved, decided = self._static(f"open {gate}", slots), self._static("decided", slots)
            return {"resolved": resolved, "decided": decided}

        clock = clock_of(self.threads)
        times, rounds = min(BUILDS, rounds), min(rounds, 3 * BUILDS)
        return rebuilt(build, times=times, rounds=rounds, clock=clock)["decided"]

    def _opened(self, state: str) -> set[str]:
        by_state = {"open": self.gates, "half": self.gates[::2], "closed": []}
        return set(by_state[state])

    def _swap(self, opened: set[str]) -> Call:
        feeds = {"image": self.image, **forced(self.slots, self.gates, opened)}
        return lambda: self.swap.run(feeds)

    def _static(self, name: str, slots: Slots | None = None) -> Call:
        constants = self.slots if slots is None else slots
        if name == "plain":
            # The plain model has neither adaptors nor gates: its head is all that is a slot.
            constants = {key: value for key, value in constants.items() if key.startswith("head.")}
        session = Session(
            self.materials.statics[name].read_bytes(),
            folder=self.materials.backbone,
            constants=constants,
            threads=self.threads,
            what=name,
        )
        return lambda: session.run({"image": self.image})
