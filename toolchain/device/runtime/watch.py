"""A runner that follows a store: what becomes current there is what it runs.

Rules of this file: one thread of its own, which requests never wait for. A domain that cannot be
loaded leaves the one that runs in its place, and is told; the next change is another attempt. A new
backbone comes with all its domains or not at all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from toolchain.core.errors import Da3Error
from toolchain.device.runtime.answers import Domain
from toolchain.device.store.current import Running, changes, current_link, read_running


class Followed(Protocol):
    """What a watch needs of a runner; :class:`toolchain.device.runtime.runner.Runner` says more."""

    @property
    def domains(self) -> Mapping[str, Domain]:
        """The loaded domains by name."""

    def load(self, source: Path, *, name: str) -> Domain:
        """Load a domain that is not there yet."""

    def replace(self, source: Path, *, name: str) -> Domain:
        """Load a domain in the place of one that is there."""

    def unload(self, name: str) -> None:
        """Let no further request reach a domain."""

    def exchange(self, backbone: Path, sources: Mapping[str, Path]) -> Mapping[str, Domain]:
        """Take another backbone with its domains in the place of all."""


POLL_S = 0.2
# How long the thread waits before it looks whether it shall end.
_LOOK_S = 0.2

Told = Callable[[str, Da3Error | None], None]
"""Takes the name of a domain, or ``backbone``, and the error that kept it from being exchanged."""

_log = logging.getLogger(__name__)


def log_told(name: str, err: Da3Error | None) -> None:
    """Log what was exchanged, or why it was not."""
    if err is None:
        _log.info("%s: exchanged for what the store has now", name)
    else:
        _log.warning("%s: not exchanged, what ran goes on: %s", name, err.message)


class Watch:
    """Follows a store until it is closed, for a runner that has loaded ``running``."""

    def __init__(self, runner: Followed, store: Path, running: Running, told: Told) -> None:
        self._runner, self._store, self._told = runner, store, told
        self._running = running
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="da3-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Follow no longer; what runs goes on."""
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        with changes(self._store, poll_s=POLL_S) as wait:
            while not self._ended.is_set():
                try:
                    if current_link(self._store) != self._running.link:
                        self._exchange(read_running(self._store))
                except Da3Error as err:
                    self._told("store", err)
                    self._ended.wait(_LOOK_S)
                wait(_LOOK_S)

    def _exchange(self, running: Running) -> None:
        """Let the runner run what is current now; whatever fails is told and stays as it was."""
        before, self._running = self._running, running
        if running.backbone is not None and running.backbone != before.backbone:
            self._backbone(running, before)
            return
        for name in before.domains.keys() - running.domains.keys():
            self._tried(name, lambda name=name: self._runner.unload(name))  # type: ignore[misc]
        for name, folder in running.domains.items():
            if before.domains.get(name) != folder:
                loaded = name in self._runner.domains
                load = self._runner.replace if loaded else self._runner.load
                self._tried(name, lambda load=load, at=folder, name=name: load(at, name=name))  # type: ignore[misc]

    def _backbone(self, running: Running, before: Running) -> None:
        assert running.backbone is not None
        try:
            self._runner.exchange(running.backbone, running.domains)
        except Da3Error as err:
            # The link is the new one, so this generation is not tried again and again.
            self._running = Running(running.link, before.backbone, before.domains)
            self._told("backbone", err)
            return
        for name in running.domains:
            self._told(name, None)

    def _tried(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Da3Error as err:
            self._told(name, err)
        else:
            self._told(name, None)


def load_running(runner: Followed, running: Running, told: Told) -> None:
    """Load every domain that is current; those that fail are told."""
    for name, folder in running.domains.items():
        try:
            runner.load(folder, name=name)
        except Da3Error as err:
            told(name, err)
