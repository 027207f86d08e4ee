"""The runner: one backbone, many domains, any number of threads.

Rules of this file, and the invariant that its tests hold:

* A request takes one reference to one loaded domain when it begins and uses nothing else. What it
  refers to is never changed, so a request runs wholly on one release: adaptor, gates and head of
  two releases cannot mix.
* Loading verifies and tests aside, and then exchanges the table of domains in one assignment.
  Requests take no lock, so replacing a domain waits for nobody and nobody waits for it.
* A release that was replaced or unloaded lives until the last request that refers to it ends.
* On an engine a request waits its turn for a context, and so does the self-test of a domain.

It computes nothing itself: :mod:`~toolchain.device.runtime.backbone_session` runs,
:mod:`toolchain.bundle` verifies. It loads onnxruntime only where a backbone's folder is opened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from toolchain import bundle
from toolchain.bundle import BackboneManifest
from toolchain.bundle.linkage import FORMS, LINKED_ROLES, Flavour, Form, Linkage
from toolchain.bundle.release import read_release
from toolchain.core.arrays import Array, Floats
from toolchain.core.errors import (
    ClosedError,
    Da3Error,
    ExistsError,
    LoadedError,
    RunError,
    SessionLimitError,
    UnknownNameError,
    UsageError,
)
from toolchain.core.files import exists
from toolchain.core.memory import memory_named
from toolchain.device.engine.cache import open_engine, refuse_kit
from toolchain.device.runtime.answers import Domain, Outcome, Prediction, predictions
from toolchain.device.runtime.backbone_session import Cost
from toolchain.device.runtime.loading import LoadedDomain, read, renew, tested_on, timed
from toolchain.device.runtime.options import (
    ENGINE,
    checked_name,
    require_engines_own,
    require_one_of,
    require_positive,
    require_session,
)
from toolchain.device.runtime.stream import Frame, stream
from toolchain.device.runtime.trt.engine import OneSession, is_engine, make_session, open_device
from toolchain.device.runtime.trt.plan import TrtDevice
from toolchain.device.store import installed
from toolchain.device.store.dist import BundleNeeds
from toolchain.pictures import request
from toolchain.pictures.request import Picture

if TYPE_CHECKING:
    from toolchain.device.runtime.ort.sessions import Sessions

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
        self._session_limit, self._max_batch = sessions, max_batch
        self._threads, self._form = threads, form
        # Exchanged as a whole under the lock, and read without it: a reader sees the old table or
        # the new one, never something between.
        self._table: Mapping[str, LoadedDomain] = MappingProxyType({})
        self._closed = False
        self._publishing = threading.Lock()
        if is_engine(path := Path(backbone)):
            require_engines_own(provider, flavour=flavour, form=form, sessions=sessions)
            self._open_engine(path, device, contexts)
        else:
            refuse_kit(path)
            require_session(path, provider)
            self._open_sessions(path, "cpu" if provider is None else provider, flavour)

    def _open_sessions(self, path: Path, provider: str, flavour: Flavour) -> None:
        # Here and nowhere else, so that a TensorRT engine runs where no onnxruntime is installed.
        from toolchain.device.runtime.ort.backbone import open_verified
        from toolchain.device.runtime.ort.session import available
        from toolchain.device.runtime.ort.sessions import Sessions

        available(provider)
        verified = open_verified(path)
        self._artefact = verified.artefact
        self._provider, self._flavour, self._precision = provider, str(flavour), "fp32"
        linkage = Linkage(flavour, self._form)
        if not linkage.is_shipped:
            # A static domain answers pictures one by one, whatever the form.
            linkage = Linkage(flavour, "if")
        self._sessions: Sessions | OneSession = Sessions(
            verified,
            graph=linkage.stem,
            threads=self._threads,
            provider=provider,
            limit=self._session_limit,
            used=lambda: [loaded.session for loaded in self._table.values()],
        )

    def _open_engine(self, path: Path, device: TrtDevice | None, contexts: int) -> None:
        engine = open_engine(path)
        built_for = engine.manifest.built_for
        self._artefact = bundle.BackboneArtefact(path, engine.backbone)
        self._provider, self._flavour = ENGINE, built_for.flavour
        self._precision = engine.kit.precision
        session = make_session(engine, device or open_device(built_for.module), contexts=contexts)
        self._sessions = OneSession(session, path.name)

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
            return self._load(source, name, selftest=selftest, replacing=False)

    def replace(
        self, source: str | Path, *, name: str | None = None, selftest: bool = True
    ) -> Domain:
        """Load a release in the place of a loaded one; as :meth:`load`, but the name must be there.

        Requests under way end on the old release, later ones run on the new one. Raises
        UnknownNameError if no domain of that name is loaded, also if it was unloaded meanwhile.
        """
        with memory_named(f"loading {source}"):
            return self._load(source, name, selftest=selftest, replacing=True)

    def unload(self, name: str) -> None:
        """Let no further request reach the domain. Raises UnknownNameError, ClosedError."""
        with self._publishing:
            self._require_open()
            if name not in self._table:
                raise UnknownNameError("domain", name, self._table)
            self._table = MappingProxyType({k: v for k, v in self._table.items() if k != name})

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
        bundle.match(release.backbone, self._artefact, release.name)
        self._sessions.prove(release, None, Path(source))
        with self._sessions.reserved(release, None) as session:
            loaded = tested_on(session, release, release.name, {}, test=True)
        installed.write(folder, opened, release, session.tested_with)
        return loaded.domain

    @property
    def domains(self) -> Mapping[str, Domain]:
        """The loaded domains by name, as they are at this moment."""
        return {name: loaded.domain for name, loaded in self._table.items()}

    def cost(self, name: str) -> Cost:
        """Return what the session took that the domain ``name`` runs on.

        Domains that share it share the cost. Raises UnknownNameError, ClosedError.
        """
        return self._get(name).session.cost

    @property
    def facts(self) -> RunnerFacts:
        """What this runner is."""
        return RunnerFacts(
            backbone=self._artefact.manifest,
            provider=self._provider,
            threads=self._threads,
            flavour=self._flavour,
            form=self._form,
            max_batch=self._max_batch,
            sessions=len(self._sessions),
            session_limit=self._session_limit,
            precision=self._precision,
        )

    def close(self) -> None:
        """Let no further request in; those under way end as they would have."""
        with self._publishing:
            self._closed = True
            self._table = MappingProxyType({})
            self._sessions.close()

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
        tensor = request.many(loaded.info.preprocess, images, self._max_batch)
        return predictions(loaded.run(tensor, time_limit_s), loaded.domain)

    def infer(
        self, tensor: Floats, domain: str | None = None, *, time_limit_s: float | None = None
    ) -> Outcome:
        """Answer a prepared tensor, float32 ``[N, 3, size, size]``; raises as :meth:`run`."""
        loaded = self._get(domain)
        checked = request.tensor(loaded.info.preprocess, tensor, limit=self._max_batch)
        return loaded.run(checked, time_limit_s)

    def prepare(self, images: Sequence[Picture] | Array, domain: str | None = None) -> Floats:
        """Return pictures as :meth:`infer` takes them, float32 ``[N, 3, size, size]``.

        Raises as :meth:`run_batch` does before the model runs.
        """
        return request.many(self._get(domain).info.preprocess, images, self._max_batch)

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
        table = self._table
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
        self, source: str | Path, name: str | None, *, selftest: bool, replacing: bool
    ) -> Domain:
        self._require_open()
        path = Path(source)
        seconds: dict[str, float] = {}
        with timed(seconds, "verify"):
            stored = read(path)
            release = stored.release
            bundle.match(release.backbone, self._artefact, release.name)
        called = release.name if name is None else checked_name(name)
        # Asked now to fail early, and again below: the table may change while the test runs.
        self._require_name(called, replacing=replacing)
        old = self._table.get(called) if replacing else None
        leaving = old.session if old else None
        # Bytes that were verified again are tested again, whatever was asked.
        required = selftest or stored.renewed is not None
        if required and not stored.tested_with:
            with timed(seconds, "trial"):
                self._sessions.prove(release, leaving, stored.file)
        started = time.perf_counter()
        with self._sessions.reserved(release, leaving) as session:
            seconds["session"] = time.perf_counter() - started
            test = required and stored.tested_with != session.tested_with
            loaded = tested_on(session, release, called, seconds, test=test)
            with self._publishing:
                self._require_open()
                self._require_name(called, replacing=replacing)
                table = {**self._table, called: loaded}
                # Under the same lock as the exchange, so that no other load comes between.
                self._sessions.require_room(release, (item.session for item in table.values()))
                self._table = MappingProxyType(table)
        renew(path, stored, session.tested_with)
        return loaded.domain

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the runner is closed", fix="open another one")

    def _require_name(self, name: str, *, replacing: bool) -> None:
        if replacing and name not in self._table:
            raise UnknownNameError("domain", name, self._table, fix="load() takes a new one")
        if not replacing and name in self._table:
            raise LoadedError(
                f"a domain {name!r} is loaded already, release {self._table[name].domain.release}",
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
