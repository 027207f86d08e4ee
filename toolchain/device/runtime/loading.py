"""From a bundle, or an installed domain, to what requests use: read, bound to a session, tested.

Rules of this file: nothing is published here, and what comes out is never changed, so any number of
threads run it. Which session a release gets is decided elsewhere:
:mod:`~toolchain.device.runtime.ort.sessions` for onnxruntime,
:mod:`~toolchain.device.runtime.trt.engine` for an engine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from toolchain import bundle
from toolchain.bundle.manifest import ReleaseInfo
from toolchain.bundle.release import Release, read_release
from toolchain.bundle.slots import Slots
from toolchain.core.arrays import Floats
from toolchain.core.errors import DataError, StorageError
from toolchain.core.files import is_folder
from toolchain.device.runtime.answers import Domain, Outcome
from toolchain.device.runtime.backbone_session import BackboneSession, BoundRelease
from toolchain.device.runtime.backend import Answer
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.selftest import selftest
from toolchain.device.store import installed
from toolchain.device.store.installed import Installed

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDomain:
    """All that a request uses; ``info``: what its bundle says of it."""

    info: ReleaseInfo
    domain: Domain
    session: BackboneSession
    bound: BoundRelease

    def run(self, tensor: Floats, time_limit_s: float | None) -> Outcome:
        """Answer a checked tensor, float32 ``[N, 3, size, size]``.

        Raises TimeLimitError, and DataError for values that overflow on their way.
        """
        limited = nullcontext() if time_limit_s is None else TimeLimit(time_limit_s)
        with limited as limit:
            started = time.perf_counter()
            answer = self.session.run(tensor, self.bound, limit)
            took_ms = 1e3 * (time.perf_counter() - started)
        if not np.isfinite(answer.logits).all() or np.isnan(answer.gates).any():
            raise DataError(
                "expected values that the model can add up, got pictures whose logits overflow",
                fix="look at what prepares the tensor; a NaN would close gates in silence",
            )
        is_open = answer.gates >= 0
        for array in (answer.logits, is_open):
            array.setflags(write=False)
        return Outcome(logits=answer.logits, gates=is_open, release=self.domain.release, ms=took_ms)


def read(path: Path) -> Installed:
    """Return the release at ``path``, and what it was tested with if it is an installed domain.

    Raises as ``bundle.open_bundle`` for a file and :func:`toolchain.device.store.installed.read`
    for a folder.
    """
    if is_folder(path):
        return installed.read(path)
    return Installed(path, read_release(bundle.open_bundle(path)), "")


def renew(path: Path, source: Installed, tested_with: str) -> None:
    """Write the record of an installed domain anew if it was verified again, and say so.

    ``tested_with``: what the self-test ran on that it has passed. A folder that nobody may write to
    is verified at each load.
    """
    if source.renewed is None:
        return
    reason = f"{path}: the record is not of the file as it is now (its inode, owner, mode or times)"
    try:
        # Where it was read: a link in a store may lead elsewhere by now.
        installed.renew(source.file.parent, source.renewed, tested_with)
    except StorageError as err:
        _log.warning(
            "%s; its bytes were verified and tested again, as at each load: %s", reason, err
        )
    else:
        _log.warning("%s; its bytes were verified and tested again, and the record renewed", reason)


def tested_on(
    session: BackboneSession, release: Release, name: str, seconds: dict[str, float], *, test: bool
) -> LoadedDomain:
    """Return ``release`` on ``session``, called ``name``; the self-test's time joins ``seconds``.

    ``test``: whether it must pass its self-test. Raises SelftestError, and BundleError for golden
    data that lie and for slots that are not those of the graph.
    """
    bound = session.bind(release)
    if test:
        limit = TimeLimit(release.time_limit_s)
        with timed(seconds, "selftest"), limit:
            selftest(
                release.golden(),
                SessionUnderTest(session, release, limit),
                release.slots,
                release.preprocess,
                allowed=session.allowed(release),
                static=session.is_static,
            )
    domain = Domain(
        name=name,
        version=release.version,
        release=release.digest,
        classes=release.classes,
        preprocess=release.preprocess,
        gates=release.gates,
        slots_bytes=release.slots_bytes,
        session=session.number,
        seconds=MappingProxyType(seconds),
    )
    # Not the release itself: it would keep the bundle alive for as long as the domain is loaded.
    info = ReleaseInfo(**release.shared())
    return LoadedDomain(info=info, domain=domain, session=session, bound=bound)


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Note in ``seconds`` what the block takes, under the name ``step``."""
    started = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - started


class SessionUnderTest:
    """A session that takes a release's tensors with each run, as a self-test changes them.

    A golden case with a forced gate comes with other tensors than the case before. Tensors are
    bound when they come for the first time and let go when others come.
    """

    def __init__(self, session: BackboneSession, release: Release, limit: TimeLimit) -> None:
        self._session, self._release, self._limit = session, release, limit
        self._slots: Slots | None = None
        self._bound: BoundRelease | None = None

    def run(self, images: Floats, slots: Slots) -> Answer:
        """Answer ``images``, ``[N, C, H, W]``, with ``slots`` in place of the release's own."""
        if self._bound is None or slots is not self._slots:
            # Let go before others are bound: a device need not have room for two.
            self._bound = None
            self._bound = self._session.bind(replace(self._release, slots=slots))
            self._slots = slots
        return self._session.run(images, self._bound, self._limit)
