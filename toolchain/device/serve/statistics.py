"""Counts and times of each model since its first request.

Rules of this file: whole numbers behind one lock; a model's counts go when it is unloaded. Nothing
is averaged here: whoever wants a rate reads the counts twice.

Source: Triton, "Statistics Extension"; times in nanoseconds, ``last_inference`` in milliseconds
since 1970.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class _Duration:
    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * 1e9)


@dataclass(slots=True)
class _Counts:
    last_ms: int = 0
    inferences: int = 0
    durations: dict[str, _Duration] = field(
        default_factory=lambda: {
            name: _Duration() for name in ("success", "fail", "queue", "compute_infer")
        }
    )


class Statistics:
    """Counts and times of the requests to each model, by its name."""

    def __init__(self) -> None:
        self._counts: dict[str, _Counts] = {}
        self._lock = threading.Lock()

    def succeeded(
        self, model: str, *, pictures: int, queue_s: float, model_s: float, total_s: float
    ) -> None:
        """Count an answered request of so many pictures."""
        with self._lock:
            counts = self._counts.setdefault(model, _Counts())
            counts.last_ms = round(time.time() * 1000)
            counts.inferences += pictures
            for name, seconds in (
                ("success", total_s),
                ("queue", queue_s),
                ("compute_infer", model_s),
            ):
                counts.durations[name].add(seconds)

    def failed(self, model: str, seconds: float) -> None:
        """Count a request to a loaded model that got no answer."""
        with self._lock:
            self._counts.setdefault(model, _Counts()).durations["fail"].add(seconds)

    def forget(self, model: str) -> None:
        """Drop a model's counts."""
        with self._lock:
            self._counts.pop(model, None)

    def of(self, model: str, version: str) -> dict[str, Any]:
        """Return one entry of the extension's ``model_stats``."""
        with self._lock:
            counts = self._counts.get(model, _Counts())
            durations = {
                name: {"count": each.count, "ns": each.ns}
                for name, each in counts.durations.items()
            }
        return {
            "name": model,
            "version": version,
            "last_inference": counts.last_ms,
            "inference_count": counts.inferences,
            "execution_count": durations["success"]["count"],
            "inference_stats": durations,
            "batch_stats": [],
        }
