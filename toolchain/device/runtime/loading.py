"""From a bundle, or an installed domain, to what requests use: read, put on a session, tested.

Rules of this file: nothing is published here, and what comes out is never changed, so any number of
threads run it. Which session a release gets is decided by
:mod:`~toolchain.device.runtime.ort.sessions`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from toolchain import bundle
from toolchain.bundle.release import Release, ReleaseInfo, read_release
from toolchain.bundle.slots import Slots
from toolchain.core.errors import DataError
from toolchain.device.runtime.answers import Domain, Outcome
from toolchain.device.runtime.backbone_session import Engine, Fit
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.ort.backend import Answer, Floats
from toolchain.device.runtime.selftest import selftest
from toolchain.device.store import installed


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that a request uses; ``info``: what its bundle says of it."""

    info: ReleaseInfo
    domain: Domain
    engine: Engine
    fit: Fit

    def run(self, tensor: Floats, time_limit_s: float | None) -> Outcome:
        """Answer a checked tensor, float32 ``[N, 3, size, size]``.

        Raises TimeLimitError, and DataError for values that overflow on their way.
        """
        limited = nullcontext() if time_limit_s is None else TimeLimit(time_limit_s)
        with limited as limit:
            started = time.perf_counter()
            found = self.engine.run(tensor, self.fit, limit)
            took_ms = 1e3 * (time.perf_counter() - started)
        if not np.isfinite(found.logits).all() or np.isnan(found.gates).any():
            raise DataError(
                "expected values that the model can add up, got pictures whose logits overflow",
                fix="look at what prepares the tensor; a NaN would close gates in silence",
            )
        opened = found.gates >= 0
        for array in (found.logits, opened):
            array.setflags(write=False)
        return Outcome(found.logits, opened, self.domain.release, took_ms)


def read(path: Path) -> tuple[Release, str]:
    """Return the release at ``path`` and what it was tested with, nothing for a bundle.

    Raises as ``bundle.open_bundle`` for a file and :func:`toolchain.device.store.installed.read`
    for a folder.
    """
    if path.is_dir():
        return installed.read(path)
    return read_release(bundle.open_bundle(path)), ""


def tested_on(
    engine: Engine, release: Release, name: str, seconds: dict[str, float], *, test: bool
) -> Loaded:
    """Return ``release`` on ``engine``, called ``name``; ``seconds`` of its steps go on.

    ``test``: whether it must pass its self-test; one that runs on another domain's graph, or with
    slots filled, must in any case. Raises SelftestError, and BundleError for golden data that lie.
    """
    fit = engine.fit(release)
    own = {graph.digest for graph in release.graphs.values()}
    if test or fit.filled or engine.graph_digest not in own:
        limit = TimeLimit(release.time_limit_s)
        with timed(seconds, "selftest"), limit:
            selftest(
                release.golden(),
                Bound(engine, release, limit),
                release.slots,
                release.preprocess,
                allowed=engine.allowed(release),
                static=engine.is_static,
            )
    domain = Domain(
        name=name,
        version=release.version,
        release=release.digest,
        classes=release.classes,
        preprocess=release.preprocess,
        gates=release.gates,
        slots_bytes=release.slots_bytes,
        session=engine.number,
        filled=fit.filled,
        seconds=MappingProxyType(seconds),
    )
    # Not the release itself: it would keep the bundle alive for as long as the domain is loaded.
    return Loaded(ReleaseInfo(**release.shared()), domain, engine, fit)


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Note what the block takes under ``step``."""
    started = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - started


class Bound:
    """An engine that takes a release's tensors and fills what it lacks, as a self-test runs it.

    Tensors are bound when they come for the first time and let go when others come.
    """

    def __init__(self, engine: Engine, release: Release, limit: TimeLimit) -> None:
        self._engine, self._release, self._limit = engine, release, limit
        self._given: Slots | None = None
        self._fit: Fit | None = None

    def run(self, images: Floats, slots: Slots) -> Answer:
        """Answer with the given tensors in place of the release's own."""
        if self._fit is None or slots is not self._given:
            # Before others are bound: there need not be room for two.
            self._fit = None
            self._fit = self._engine.fit(replace(self._release, slots=slots))
            self._given = slots
        return self._engine.run(images, self._fit, self._limit)
