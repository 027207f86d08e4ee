"""The figures that a run is judged by: where each stands in the parts, and its goal.

Rules of this file: parts in, numbers out. If a part was not measured, its figures are left out.
Goals are for ResNet-50 at 224 px on a CPU. They stand beside figures; nothing is refused for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is, and the ``least`` or the ``most`` that it should be."""

    what: str
    sense: Literal["least", "most"]
    value: float

    def met(self, value: float) -> bool:
        """Whether ``value`` reaches the target."""
        return value >= self.value if self.sense == "least" else value <= self.value


GOALS: Mapping[str, Goal] = {
    "swap_cold_speedup": Goal(
        "bundle on disk to ready, against making a session of the whole model", "least", 20
    ),
    "swap_installed_speedup": Goal("the same, verified when it was installed", "least", 200),
    "switch_overhead": Goal("what changing the loaded domain adds to a request", "most", 0.01),
    "domain_resident_ratio": Goal(
        "resident memory of a further domain, against its weights", "most", 1.5
    ),
    "swap_throughput_ratio": Goal("throughput while domains are swapped", "least", 0.95),
    "memory_after_ratio": Goal("memory after all swaps, against before", "most", 1.01),
    "failed": Goal("requests that failed under swaps", "most", 0),
    "mixed": Goal("answers that mix two releases", "most", 0),
    "overhead_ms": Goal("what the runner adds to onnxruntime's own call, ms", "most", 0.2),
}


def figures(parts: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of those parts that were measured."""
    by_name: dict[str, float] = {}
    if "swap" in parts:
        by_name |= _speedups(parts["swap"])
    if "switch" in parts:
        by_name["switch_overhead"] = parts["switch"]["ways"]["bundle"]["overhead"]
    if "memory" in parts:
        ways = parts["memory"]["ways"]
        by_name["domain_resident_ratio"] = ways.get("bundle, many", ways["bundle"])["ratio"]
    if "load" in parts:
        load = parts["load"]
        by_name["swap_throughput_ratio"] = load["rows"]["installed"]["ratio"]
        by_name["memory_after_ratio"] = load["memory"]["ratio"]
        by_name |= {key: load[key] for key in ("failed", "mixed")}
    if "overhead" in parts:
        by_name["overhead_ms"] = parts["overhead"]["runner"]["difference_ms"]
    return by_name


def _speedups(swap: Mapping[str, Any]) -> dict[str, float]:
    """Return how many times faster ours are ready, at a process's first swap and at later ones."""
    speedups = {}
    for phase, suffix in (("first", ""), ("again", "_again")):
        ready = swap[phase]["ready"]
        for kind, name in (("bundle", "swap_cold"), ("installed", "swap_installed")):
            if "whole" in ready:
                speedups[f"{name}_speedup{suffix}"] = 1 / ready[kind]["ratio"]
    return speedups
