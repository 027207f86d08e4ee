"""The sessions of the backbone that a runner holds: one for each linked graph that is in use.

Rules of this file: two domains share a session only where it computes the same for both, which the
digests of graph and weights say. This file alone decides that. A session that is made for a release
belongs to that load alone until the release passed its self-test and was published. A load that
needs an equal one waits for the outcome; no other load waits. This file holds no session for
longer than a load takes: a session goes with the last domain that uses it. Requests refer to their
session themselves and need nothing from here.

The one lock is never held while a session is made or tested.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from toolchain.bundle.release import Graph, Release
from toolchain.core.errors import ClosedError, SessionLimitError
from toolchain.device.runtime.backbone_session import BackboneSession, Computed
from toolchain.device.runtime.ort.backbone import VerifiedBackbone, make_session
from toolchain.device.runtime.ort.trial import prove


class Sessions:
    """Sessions over one backbone, at most ``limit`` of them in use.

    ``graph``: stem of the linked graph that they are made from (``swap-if``). ``used`` returns the
    sessions that loaded domains use at this moment.
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
        # What loads make and test at this moment, each for itself.
        self._pending: set[Computed] = set()
        # Shared sessions that a load has come to; a domain that leaves meanwhile takes none away.
        self._joined: list[BackboneSession] = []
        self._made = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return len(self._occupied([*self._used(), *self._joined]))

    @contextmanager
    def reserved(
        self, release: Release, leaving: BackboneSession | None
    ) -> Iterator[BackboneSession]:
        """Yield the session for ``release``; it stays at least for the block.

        Others may share a new session once the block has ended and a loaded domain uses it.
        ``leaving``: session of the domain that the release replaces. It needs no room any more,
        unless other domains use it. Raises SessionLimitError, ClosedError, and BundleError as
        :func:`toolchain.device.runtime.ort.backbone.make_session`.
        """
        graph = release.graph(self._graph)
        computed = Computed.of(release, graph)
        session = self._join(computed, release, leaving)
        if session is not None:
            try:
                yield session
            finally:
                with self._changed:
                    self._joined.remove(session)
            return
        try:
            yield self._make(release, graph)
        finally:
            with self._changed:
                self._pending.remove(computed)
                self._changed.notify_all()

    def prove(self, release: Release, leaving: BackboneSession | None, source: Path) -> None:
        """Have the graph of ``release`` tried in a process of its own, if it would be new here.

        ``source``: the verified bundle that it was read from. It takes no place meanwhile, so no
        other load waits or is refused for it. Raises SessionLimitError where there would be no
        place, and as :func:`toolchain.device.runtime.ort.trial.prove`.
        """
        computed = Computed.of(release, release.graph(self._graph))
        with self._changed:
            sessions = [*self._used(), *self._joined]
            if any(session.computed == computed for session in sessions):
                return
            if computed not in self._pending:
                self._require_place(release, leaving)
        artefact = self._backbone.artefact
        prove(source, release, artefact, [self._graph], threads=self._threads)

    def require_room(self, release: Release, users: Iterable[BackboneSession]) -> None:
        """Raise SessionLimitError if ``users``, those of ``release`` included, are too many.

        To be asked before they are published: a domain that was loaded meanwhile may have come to
        the session that was about to be left.
        """
        busy = _distinct(users)
        if len(busy) > self._limit:
            raise self._no_room(release, busy[0])

    def close(self) -> None:
        """Make no further session; those in use end with their last request."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _join(
        self, computed: Computed, release: Release, leaving: BackboneSession | None
    ) -> BackboneSession | None:
        """Return the session that computes this already; None: the caller is to make it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or computed not in self._pending)
            if self._closed:
                raise ClosedError("the runner is closed", fix="open another one")
            for session in (*self._used(), *self._joined):
                if session.computed == computed:
                    self._joined.append(session)
                    return session
            self._require_place(release, leaving)
            self._pending.add(computed)
            return None

    def _make(self, release: Release, graph: Graph) -> BackboneSession:
        with self._changed:
            number = self._made
            self._made += 1
        return make_session(
            self._backbone,
            release,
            graph,
            number=number,
            threads=self._threads,
            provider=self._provider,
        )

    def _require_place(self, release: Release, leaving: BackboneSession | None) -> None:
        users = list(self._used())
        # Once, not wholly: other domains may use the same session.
        if leaving in users:
            users.remove(leaving)
        busy = [*users, *self._joined]
        if len(self._occupied(busy)) >= self._limit:
            raise self._no_room(release, busy[0] if busy else None)

    def _occupied(self, sessions: Iterable[BackboneSession]) -> set[Computed]:
        """Return what ``sessions`` compute, and those in the making.

        A session that was published a moment ago is among both.
        """
        return {session.computed for session in sessions} | self._pending

    def _no_room(self, release: Release, first: BackboneSession | None) -> SessionLimitError:
        """Return the error that says what a further session costs."""
        if first is None:
            return SessionLimitError(
                f"{release.name} needs a session of its own, and another domain is being loaded",
                fix=f"wait for that load, or allow both with sessions={self._limit + 1}",
                needed=self._limit + 1,
            )
        lines = first.misfits(release) or ("another domain was loaded at the same time",)
        price = first.cost.resident_bytes or self._backbone.artefact.weights_bytes
        return SessionLimitError(
            f"{release.name} does not fit the loaded session ({lines[0]}); "
            f"one more session of the backbone would take about {price / 2**20:.0f} MiB and "
            f"{first.cost.seconds:.1f} s, as the first did",
            fix=f"allow it with sessions={self._limit + 1}, or {_otherwise(release, first)}",
            needed=self._limit + 1,
        )


def _otherwise(release: Release, first: BackboneSession) -> str:
    if release.patch is not None or first.computed.weights:
        return (
            "use da3 or da2, whose domains share the backbone's session; one that changes the "
            "backbone has a session of its own"
        )
    return "export the domains with the same method and options, by the same version"


def _distinct(sessions: Iterable[BackboneSession]) -> tuple[BackboneSession, ...]:
    return tuple({id(session): session for session in sessions}.values())
