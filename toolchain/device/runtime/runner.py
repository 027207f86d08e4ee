"""The runner: one backbone, many domains, any number of threads.

Rules of this file, and the invariant that its tests hold:

* A request takes one reference to one loaded domain when it begins and uses nothing else. What it
  refers to is never changed, so a request runs wholly on one release: adaptor, gates and head of
  two releases cannot mix.
* Loading verifies and tests aside, and then exchanges the table of domains in one assignment.
  Requests take no lock, so replacing a domain waits for nobody and nobody waits for it.
* A backbone is exchanged with all its domains in one assignment, too.
* A release that was replaced or unloaded lives until the last request that refers to it ends.
* On an engine a request waits its turn for a context, and so does the self-test of a domain.

It computes nothing itself: :mod:`~toolchain.device.runtime.backbone_session` runs,
:mod:`toolchain.bundle` verifies, :mod:`~toolchain.device.runtime.open_backbone` opens the backbone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from toolchain import bundle
from toolchain.bundle import BackboneManifest
from toolchain.bundle.linkage import FORMS, LINKED_ROLES, Flavour, Form
from toolchain.bundle.release import read_release
from toolchain.core.arrays import Array, Floats
from toolchain.core.errors import (
    ClosedError,
    Da3Error,
    ExistsError,
    LoadedError,
    RunError,
    SessionLimitError,
    StoreError,
    UnknownNameError,
    UsageError,
)
from toolchain.core.files import exists
from toolchain.core.memory import memory_named
from toolchain.device.runtime.answers import Domain, Outcome, Prediction, predictions
from toolchain.device.runtime.backbone_session import Cost
from toolchain.device.runtime.loading import LoadedDomain, read, renew, tested_on, timed
from toolchain.device.runtime.open_backbone import OpenBackbone, RunnerOptions, open_backbone
from toolchain.device.runtime.options import checked_name, require_one_of, require_positive
from toolchain.device.runtime.stream import Frame, stream
from toolchain.device.runtime.trt.plan import TrtDevice
from toolchain.device.runtime.watch import Told, Watch, load_running, log_told
from toolchain.device.store import installed
from toolchain.device.store.current import read_running
from toolchain.device.store.dist import BundleNeeds
from toolchain.pictures import request
from toolchain.pictures.request import Picture

MAX_BATCH = 64
# More than any board has; onnxruntime starts them all, which takes minutes for very many.
MAX_THREADS = 128


@dataclass(frozen=True, slots=True)
class RunnerFacts:
    """What a runner is: its backbone and how it runs.

    ``provider``: an onnxruntime provider, or ``engine``. ``sessions``: how many copies of the
    backbone are in memory now; ``session_limit``: how many loaded domains may use at most.
    ``precision``: what its frozen part is computed in.
    """

    backbone: BackboneManifest
    provider: str
    threads: int
    flavour: str
    form: Form
    max_batch: int
    sessions: int
    session_limit: int
    precision: str = "fp32"


class Runner:
    """Runs domains on one backbone artefact, or on a TensorRT engine of one.

    ``backbone``: the folder of the artefact or engine, hashed here. ``threads``: of one operator;
    requests of several threads run side by side anyway. ``provider``: ``cpu``, ``cuda`` or
    ``tensorrt`` for an artefact, ``engine`` for an engine; by default ``cpu`` or ``engine``, never
    exchanged in silence. ``flavour``: ``swap``, or ``static`` for one fixed domain at full speed.
    ``form``: ``if`` answers pictures one by one, ``rows`` in one call, which pays for batches on
    small backbones (docs/decisions/0003-forms.md). ``sessions``: how many copies of the backbone
    may be held for domains whose graphs differ. ``max_batch``: pictures in one request.
    ``contexts``: how many requests an engine computes at the same time, each in memory of its own;
    ``device``: where it runs, by default the machine's first GPU. What an engine decides itself
    (flavour, form, sessions) may not be asked to be something else.

    Raises BundleError and StorageError for the backbone or engine, UnknownNameError and
    ProviderError for the provider, UsageError for limits below one and other flavours or forms; for
    an engine EngineMismatchError, EngineError, DeviceError and DeviceMemoryError.
    """

    def __init__(
        self,
        backbone: str | Path,
        *,
        threads: int = 1,
        provider: str | None = None,
        flavour: Flavour = "swap",
        form: Form = "if",
        sessions: int = 1,
        max_batch: int = MAX_BATCH,
        contexts: int = 1,
        device: TrtDevice | None = None,
    ) -> None:
        require_positive(threads=threads, sessions=sessions, max_batch=max_batch, contexts=contexts)
        if threads > MAX_THREADS:
            raise UsageError(
                f"threads: expected at most {MAX_THREADS}, got {threads}",
                fix="as many as there are cores is the most that helps",
            )
        require_one_of(LINKED_ROLES, flavour=flavour)
        require_one_of(FORMS, form=form)
        self._options = RunnerOptions(
            threads=threads,
            provider=provider,
            flavour=flavour,
            form=form,
            sessions=sessions,
            max_batch=max_batch,
            contexts=contexts,
            device=device,
        )
        # Exchanged as a whole under the lock, and read without it, as its table is.
        self._open = open_backbone(Path(backbone), self._options)
        self._closed = False
        self._publishing = threading.Lock()
        self._watch: Watch | None = None

    @classmethod
    def watch(cls, store: str | Path, *, told: Told = log_told, **options: Any) -> Runner:
        """Return a runner of what is current in a device's store, which follows it until closed.

        Domains that are activated, rolled back or removed there are exchanged here, and a backbone
        with all its domains at once; requests notice nothing. ``told``: called with the name of
        each domain that was exchanged, or with ``backbone``, and with the error if it could not be;
        what ran before goes on then. ``options``: as :class:`Runner`. Raises StoreError for a store
        without a backbone, and as :class:`Runner`.
        """
        folder = Path(store)
        running = read_running(folder)
        if running.backbone is None:
            raise StoreError(
                f"{folder}: expected a store with a backbone, got one without",
                fix="install a domain first: da3 device install NAME, da3 device activate NAME",
            )
        runner = cls(running.backbone, **options)
        load_running(runner, running, told)
        runner._watch = Watch(runner, folder, running, told)
        return runner

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- domains ---------------------------------------------------------------------------------

    def load(self, source: str | Path, *, name: str | None = None, selftest: bool = True) -> Domain:
        """Verify a domain, test it on its golden data, and let requests reach it.

        ``source``: a ``.da3b`` file, or the folder of an installed domain, which was verified and
        tested when :meth:`install` made it. ``name``: to load it under another name than its own.
        ``selftest``: may be left out where the same bundle was tested on this device before.

        Raises LoadedError if the name is taken; SessionLimitError if its graph needs a further
        session; BundleError, BackboneMismatchError, StorageError and SelftestError if it cannot be
        trusted; UsageError for a name that no domain can have; ClosedError. Nothing has changed
        then.
        """
        with memory_named(f"loading {source}"):
            return self._load(self._open, source, name, selftest=selftest, replacing=False)

    def replace(
        self, source: str | Path, *, name: str | None = None, selftest: bool = True
    ) -> Domain:
        """Load a release in the place of a loaded one; as :meth:`load`, but the name must be there.

        Requests under way end on the old release, later ones run on the new one. Raises
        UnknownNameError if no domain of that name is loaded, also if it was unloaded meanwhile.
        """
        with memory_named(f"loading {source}"):
            return self._load(self._open, source, name, selftest=selftest, replacing=True)

    def unload(self, name: str) -> None:
        """Let no further request reach the domain. Raises UnknownNameError, ClosedError."""
        with self._publishing:
            self._require_open()
            if name not in self._open.table:
                raise UnknownNameError("domain", name, self._open.table)
            self._open.publish({k: v for k, v in self._open.table.items() if k != name})

    def exchange(
        self,
        backbone: str | Path,
        sources: Mapping[str, str | Path],
        *,
        selftest: bool = True,
    ) -> Mapping[str, Domain]:
        """Take another backbone with its domains in the place of all that is loaded, at once.

        ``sources``: the domains' bundles or installed folders by the names to load them under. All
        of them are loaded and tested aside first, so both backbones are in memory meanwhile.
        Requests under way end on the old domains, later ones run on the new ones; none is refused
        for the exchange. Raises as :class:`Runner` and :meth:`load`; nothing has changed then.
        """
        self._require_open()
        fresh = open_backbone(Path(backbone), self._options)
        for name, source in sources.items():
            with memory_named(f"loading {source}"):
                self._load(fresh, source, name, selftest=selftest, replacing=False)
        with self._publishing:
            self._require_open()
            self._open.left = True
            self._open = fresh
        return self.domains

    def install(self, source: str | Path, folder: str | Path) -> Domain:
        """Verify and test the bundle ``source`` and lay it into the new folder ``folder``.

        Loading that folder takes a fraction of the time, as nothing is hashed again; see
        :mod:`toolchain.device.store.installed`. Raises as :meth:`load`, and ExistsError.
        """
        self._require_open()
        if exists(folder):
            raise ExistsError(
                f"expected a new folder to install into, got {folder}",
                fix="name another for each release, such as cars-2, or remove this one",
            )
        opened = bundle.open_bundle(source)
        release = read_release(opened)
        sessions = self._open.sessions
        bundle.match(release.backbone, self._open.artefact, release.name)
        sessions.prove(release, None, Path(source))
        with sessions.reserved(release, None) as session:
            loaded = tested_on(session, release, release.name, {}, test=True)
        installed.write(folder, opened, release, session.tested_with)
        return loaded.domain

    @property
    def domains(self) -> Mapping[str, Domain]:
        """The loaded domains by name, as they are at this moment."""
        return {name: loaded.domain for name, loaded in self._open.table.items()}

    def cost(self, name: str) -> Cost:
        """Return what the session took that the domain ``name`` runs on.

        Domains that share it share the cost. Raises UnknownNameError, ClosedError.
        """
        return self._get(name).session.cost

    @property
    def facts(self) -> RunnerFacts:
        """What this runner is."""
        opened, options = self._open, self._options
        return RunnerFacts(
            backbone=opened.artefact.manifest,
            provider=opened.provider,
            threads=options.threads,
            flavour=opened.flavour,
            form=options.form,
            max_batch=options.max_batch,
            sessions=len(opened.sessions),
            session_limit=options.sessions,
            precision=opened.precision,
        )

    def close(self) -> None:
        """Let no further request in; those under way end as they would have."""
        if self._watch is not None:
            self._watch.close()
        with self._publishing:
            self._closed = True
            self._open.publish({})
            self._open.sessions.close()

    # -- requests --------------------------------------------------------------------------------

    def run(
        self, image: Picture, domain: str | None = None, *, time_limit_s: float | None = None
    ) -> Prediction:
        """Answer one picture; what it may be says :func:`toolchain.pictures.request.one`.

        ``domain`` may be left out while exactly one is loaded. Raises DataError for a picture that
        cannot be used, UsageError where a domain must be named, UnknownNameError for one that is
        not loaded, TimeLimitError when the model takes longer than ``time_limit_s``, ClosedError.
        """
        loaded = self._get(domain)
        tensor = request.one(loaded.info.preprocess, image)
        return predictions(loaded.run(tensor, time_limit_s), loaded.domain)[0]

    def run_batch(
        self,
        images: Sequence[Picture] | Array,
        domain: str | None = None,
        *,
        time_limit_s: float | None = None,
    ) -> tuple[Prediction, ...]:
        """Answer up to ``max_batch`` pictures, in order; raises as :meth:`run`."""
        loaded = self._get(domain)
        tensor = request.many(loaded.info.preprocess, images, self._options.max_batch)
        return predictions(loaded.run(tensor, time_limit_s), loaded.domain)

    def infer(
        self, tensor: Floats, domain: str | None = None, *, time_limit_s: float | None = None
    ) -> Outcome:
        """Answer a prepared tensor, float32 ``[N, 3, size, size]``; raises as :meth:`run`."""
        loaded = self._get(domain)
        checked = request.tensor(loaded.info.preprocess, tensor, limit=self._options.max_batch)
        return loaded.run(checked, time_limit_s)

    def prepare(self, images: Sequence[Picture] | Array, domain: str | None = None) -> Floats:
        """Return pictures as :meth:`infer` takes them, float32 ``[N, 3, size, size]``.

        Raises as :meth:`run_batch` does before the model runs.
        """
        return request.many(self._get(domain).info.preprocess, images, self._options.max_batch)

    def stream(
        self,
        source: str | Path | int,
        domain: str | None = None,
        *,
        every: int = 1,
        limit: int | None = None,
        time_limit_s: float | None = None,
    ) -> Iterator[Frame]:
        """Answer a folder, a video file or a camera frame by frame.

        As :func:`toolchain.device.runtime.stream.stream`, which says what a source may be.
        """
        return stream(self, source, domain, every=every, limit=limit, time_limit_s=time_limit_s)

    # -- inside ----------------------------------------------------------------------------------

    def _get(self, name: str | None) -> LoadedDomain:
        table = self._open.table
        # From here on the table that was read counts, also if another one is published meanwhile.
        if name is None and len(table) == 1:
            return next(iter(table.values()))
        if self._closed:
            raise ClosedError("the runner is closed", fix="open another one")
        if name is None:
            raise UsageError(
                f"expected the name of one of {len(table)} loaded domains, got none",
                fix=f"name one of: {', '.join(sorted(table)) or 'none is loaded; load one first'}",
            )
        if name not in table:
            raise UnknownNameError("domain", name, table, fix="or load its bundle first")
        return table[name]

    def _load(
        self,
        opened: OpenBackbone,
        source: str | Path,
        name: str | None,
        *,
        selftest: bool,
        replacing: bool,
    ) -> Domain:
        """Load ``source`` on ``opened``, which requests reach already or shall reach later."""
        self._require_open()
        path = Path(source)
        seconds: dict[str, float] = {}
        with timed(seconds, "verify"):
            stored = read(path)
            release = stored.release
            bundle.match(release.backbone, opened.artefact, release.name)
        called = release.name if name is None else checked_name(name)
        # Asked now to fail early, and again below: the table may change while the test runs.
        _require_name(opened, called, replacing=replacing)
        old = opened.table.get(called) if replacing else None
        leaving = old.session if old else None
        # Bytes that were verified again are tested again, whatever was asked.
        required = selftest or stored.renewed is not None
        if required and not stored.tested_with:
            with timed(seconds, "trial"):
                opened.sessions.prove(release, leaving, stored.file)
        started = time.perf_counter()
        with opened.sessions.reserved(release, leaving) as session:
            seconds["session"] = time.perf_counter() - started
            test = required and stored.tested_with != session.tested_with
            loaded = tested_on(session, release, called, seconds, test=test)
            with self._publishing:
                self._require_open()
                _require_current(opened, path)
                _require_name(opened, called, replacing=replacing)
                table = {**opened.table, called: loaded}
                # Under the same lock as the exchange, so that no other load comes between.
                opened.sessions.require_room(release, (item.session for item in table.values()))
                opened.publish(table)
        renew(path, stored, session.tested_with)
        return loaded.domain

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the runner is closed", fix="open another one")


def _require_current(opened: OpenBackbone, path: Path) -> None:
    if opened.left:
        raise RunError(
            f"{path}: the backbone was exchanged while it was loaded", fix="load it again"
        )


def _require_name(opened: OpenBackbone, name: str, *, replacing: bool) -> None:
    if replacing and name not in opened.table:
        raise UnknownNameError("domain", name, opened.table, fix="load() takes a new one")
    if not replacing and name in opened.table:
        raise LoadedError(
            f"a domain {name!r} is loaded already, release {opened.table[name].domain.release}",
            fix="replace() it, unload() it first, or load under another name",
        )


def load_fitting(
    runner: Runner,
    surveyed: BundleNeeds,
    *,
    selftest: bool = True,
    made: Callable[[Path, Cost], None],
    refused: Callable[[Path, Da3Error], None],
) -> None:
    """Load every bundle that the runner takes, under its file's name.

    The fix of a SessionLimitError says how many sessions all of them need. ``made`` is called with
    each bundle that needed a further session beside the first, and what that cost; ``refused`` with
    each bundle that was not loaded and its error. Raises RunError if none is loaded.
    """
    for path, err in surveyed.refused.items():
        refused(path, err)
    sessions: set[int] = set()
    limited: dict[Path, SessionLimitError] = {}
    for path in surveyed.in_order():
        try:
            number = runner.load(path, name=path.stem, selftest=selftest).session
        except SessionLimitError as err:
            limited[path] = err
            continue
        except Da3Error as err:
            refused(path, err)
            continue
        if sessions and number not in sessions:
            made(path, runner.cost(path.stem))
        sessions.add(number)
    # Equal graphs over equal weights share one session.
    further = {(one.weights, one.graphs) for one in surveyed.needs if one.path in limited}
    for path, error in limited.items():
        error.say(len(sessions) + len(further))
        refused(path, error)
    if not runner.domains:
        raise RunError("expected a bundle that can be loaded, got none", fix="see why above")
