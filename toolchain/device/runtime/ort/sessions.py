"""The sessions of the backbone that a runner holds: one, unless it may hold more.

Rules of this file: a release runs on the session of its own graph, on one that a loaded domain uses
and its slots fit, or on a new one if there is room; which of them is decided here and nowhere else.
A session stays while a loaded domain or a domain being loaded uses it; one that nobody uses stays
only if it is the last, for the next load. Requests refer to their session themselves and need
nothing from here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from toolchain.bundle.release import Release
from toolchain.core.errors import SessionLimitError
from toolchain.device.runtime.backbone_session import Backbone, Engine, make_engine


class Sessions:
    """Engines over one backbone, at most ``limit`` of them in use.

    ``graph``: stem of the linked graph that new ones are made from (``swap-if``). ``used`` tells
    which engines loaded domains use at this moment.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        graph: str,
        threads: int,
        provider: str,
        limit: int,
        used: Callable[[], Iterable[Engine]],
    ) -> None:
        self._backbone = backbone
        self._graph, self._threads, self._provider = graph, threads, provider
        self._limit, self._used = limit, used
        self._held: tuple[Engine, ...] = ()
        # Of domains that are being loaded: they count, and must not be let go.
        self._pending: list[Engine] = []
        self._made = 0
        self._closed = False
        self._building = threading.Lock()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def reserved(self, release: Release, leaving: Engine | None) -> Iterator[Engine]:
        """Yield the session for ``release``; it stays at least for the block.

        ``leaving``: session of the domain that the release replaces, which needs no room any more
        unless other domains use it. Raises SessionLimitError, and BundleError as
        :func:`toolchain.device.runtime.backbone_session.make_engine`.
        """
        with self._building:
            engine = self._chosen(release, leaving)
            with self._lock:
                fresh = engine not in self._held
                self._pending.append(engine)
                self._held = _distinct([*self._held, engine])
        try:
            yield engine
        except BaseException:
            # A session that was made for a release which failed on it is nobody's spare one.
            with self._lock:
                self._held = tuple(e for e in self._held if not (fresh and e is engine))
            raise
        finally:
            with self._lock:
                self._pending.remove(engine)
            self.trim()

    def require_room(self, release: Release, users: Iterable[Engine]) -> None:
        """Raise SessionLimitError if ``users``, those of ``release`` included, are too many.

        To be asked before they are published: a domain that was loaded meanwhile may have come to
        the session that was about to be left.
        """
        busy = _distinct(users)
        if len(busy) > self._limit:
            raise self._no_room(release, busy[0])

    def trim(self) -> None:
        """Let go of what nobody uses, but for the last one."""
        with self._lock:
            spare = () if self._closed else self._held[-1:]
            self._held = _distinct([*self._used(), *self._pending]) or spare

    def close(self) -> None:
        """Let go of all; those in use end with their last request."""
        self._closed = True
        self.trim()

    def _chosen(self, release: Release, leaving: Engine | None) -> Engine:
        graph = release.graph(self._graph)
        ready = [engine for engine in self._held if not engine.misfits(release)]
        own = [engine for engine in ready if engine.graph_digest == graph.digest]
        # Another domain's graph is taken to share it, not to inherit it when that domain goes.
        staying = self._staying(leaving)
        shared = [engine for engine in ready if engine in staying]
        if own or shared:
            return (own or shared)[0]
        self._make_room(release, leaving)
        self._made += 1
        return make_engine(
            self._backbone,
            release,
            graph,
            number=self._made - 1,
            threads=self._threads,
            provider=self._provider,
        )

    def _make_room(self, release: Release, leaving: Engine | None) -> None:
        """Let go of a session that nobody uses; raise SessionLimitError if that is not enough."""
        with self._lock:
            self._held = _distinct([*self._used(), *self._pending])
        busy = self._staying(leaving)
        if len(busy) >= self._limit:
            raise self._no_room(release, busy[0])

    def _staying(self, leaving: Engine | None) -> tuple[Engine, ...]:
        """Return the sessions in use once one domain has left ``leaving``."""
        with self._lock:
            users = [*self._used(), *self._pending]
        if leaving in users:
            users.remove(leaving)
        return _distinct(users)

    def _no_room(self, release: Release, first: Engine) -> SessionLimitError:
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


def _otherwise(release: Release, first: Engine) -> str:
    if release.patch is not None or first.weights:
        return (
            "use da3, da2 or head, whose domains share the backbone's session; one that changes "
            "the backbone has a session of its own"
        )
    return (
        "export the domains with the same method and options; one with fewer slots fits a session "
        "with more, if that was loaded first"
    )


def _distinct(engines: Iterable[Engine]) -> tuple[Engine, ...]:
    return tuple({id(engine): engine for engine in engines}.values())
