"""The sessions of the backbone that a runner holds: one, unless it may hold more.

Rules of this file: a release runs on the session of its own graph, on one that a loaded domain uses
and its slots fit, or on a new one if there is room. This file alone decides which of them. A
session stays while a loaded domain, or a domain being loaded, uses it. A session that nobody uses
stays only if it is the last, for the next load. Requests refer to their session themselves and need
nothing from here.

Two locks: ``_building`` lets one session be made at a time, which takes seconds; ``_lock`` guards
the lists and is never held for long, so that closing and publishing do not wait for a session.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from toolchain.bundle.release import Release
from toolchain.core.errors import SessionLimitError
from toolchain.device.runtime.backbone_session import BackboneSession
from toolchain.device.runtime.ort.backbone import VerifiedBackbone, make_session


class Sessions:
    """Sessions over one backbone, at most ``limit`` of them in use.

    ``graph``: stem of the linked graph that new ones are made from (``swap-if``). ``used`` returns
    the sessions that loaded domains use at this moment.
    """

    def __init__(
        self,
        backbone: VerifiedBackbone,
        *,
        graph: str,
        threads: int,
        provider: str,
        limit: int,
        used: Callable[[], Iterable[BackboneSession]],
    ) -> None:
        self._backbone = backbone
        self._graph, self._threads, self._provider = graph, threads, provider
        self._limit, self._used = limit, used
        self._sessions: tuple[BackboneSession, ...] = ()
        # Those of domains that are being loaded: they count, and must not be let go.
        self._pending: list[BackboneSession] = []
        self._made = 0
        self._closed = False
        self._building = threading.Lock()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    @contextmanager
    def reserved(
        self, release: Release, leaving: BackboneSession | None
    ) -> Iterator[BackboneSession]:
        """Yield the session for ``release``; it stays at least for the block.

        ``leaving``: session of the domain that the release replaces. It needs no room any more,
        unless other domains use it. Raises SessionLimitError, and BundleError as
        :func:`toolchain.device.runtime.ort.backbone.make_session`.
        """
        with self._building:
            session = self._session_for(release, leaving)
            with self._lock:
                is_new = session not in self._sessions
                self._pending.append(session)
                self._sessions = _distinct([*self._sessions, session])
        try:
            yield session
        except BaseException:
            # The session was made for this release, which failed on it: no other one shall find it.
            with self._lock:
                if is_new:
                    self._sessions = tuple(s for s in self._sessions if s is not session)
            raise
        finally:
            with self._lock:
                self._pending.remove(session)
            self.trim()

    def require_room(self, release: Release, users: Iterable[BackboneSession]) -> None:
        """Raise SessionLimitError if ``users``, those of ``release`` included, are too many.

        To be asked before they are published: a domain that was loaded meanwhile may have come to
        the session that was about to be left.
        """
        busy = _distinct(users)
        if len(busy) > self._limit:
            raise self._no_room(release, busy[0])

    def trim(self) -> None:
        """Let go of what nobody uses, except the last one."""
        with self._lock:
            spare = () if self._closed else self._sessions[-1:]
            self._sessions = _distinct([*self._used(), *self._pending]) or spare

    def close(self) -> None:
        """Let go of all; those in use end with their last request."""
        self._closed = True
        self.trim()

    def _session_for(self, release: Release, leaving: BackboneSession | None) -> BackboneSession:
        graph = release.graph(self._graph)
        fitting = [session for session in self._sessions if not session.misfits(release)]
        own = [session for session in fitting if session.graph_digest == graph.digest]
        # A release may share another domain's graph while that domain stays. It does not inherit
        # the graph of a domain that is leaving.
        staying = self._staying(leaving)
        shared = [session for session in fitting if session in staying]
        if own or shared:
            return (own or shared)[0]
        self._make_room(release, leaving)
        self._made += 1
        return make_session(
            self._backbone,
            release,
            graph,
            number=self._made - 1,
            threads=self._threads,
            provider=self._provider,
        )

    def _make_room(self, release: Release, leaving: BackboneSession | None) -> None:
        """Let go of a session that nobody uses; raise SessionLimitError if that is not enough."""
        with self._lock:
            self._sessions = _distinct([*self._used(), *self._pending])
        busy = self._staying(leaving)
        if len(busy) >= self._limit:
            raise self._no_room(release, busy[0])

    def _staying(self, leaving: BackboneSession | None) -> tuple[BackboneSession, ...]:
        """Return the sessions in use once one domain has left ``leaving``."""
        with self._lock:
            users = [*self._used(), *self._pending]
        # Once, not wholly: other domains may use the same session.
        if leaving in users:
            users.remove(leaving)
        return _distinct(users)

    def _no_room(self, release: Release, first: BackboneSession) -> SessionLimitError:
        """Return the error that says what a further session costs."""
        lines = first.misfits(release) or ("another domain was loaded at the same time",)
        weights_bytes = self._backbone.artefact.weights_path.stat().st_size
        price = first.cost.resident_bytes or weights_bytes
        return SessionLimitError(
            f"{release.name} does not fit the loaded session ({lines[0]}); "
            f"one more session of the backbone would take about {price / 2**20:.0f} MiB and "
            f"{first.cost.seconds:.1f} s, as the first did",
            fix=f"allow it with sessions={self._limit + 1}, or {_otherwise(release, first)}",
        )


def _otherwise(release: Release, first: BackboneSession) -> str:
    if release.patch is not None or first.weights:
        return (
            "use da3, da2 or head, whose domains share the backbone's session; one that changes "
            "the backbone has a session of its own"
        )
    return (
        "export the domains with the same method and options; one with fewer slots fits a session "
        "with more, if that was loaded first"
    )


def _distinct(sessions: Iterable[BackboneSession]) -> tuple[BackboneSession, ...]:
    return tuple({id(session): session for session in sessions}.values())
