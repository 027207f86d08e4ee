"""The store of a device: what is installed, which of it runs, and the one way to change that.

Rules of this file: whoever reads takes no lock; whoever writes holds the one lock. A step is worked
out first (:mod:`toolchain.device.store.steps`), its content is made durable, then the journal, then
the state, and at last the links. What a method returned from is there after a power cut. A method
that raised has changed nothing that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.core import durable
from toolchain.core.errors import Da3Error, ExistsError, StorageError
from toolchain.core.files import exists, is_file, make_folder, names, write_atomic
from toolchain.core.lock import locked
from toolchain.core.units import Unit
from toolchain.core.words import TIME_FORMAT, Notes
from toolchain.device.store import content, generation, journal, recovery, space, steps
from toolchain.device.store import state as states
from toolchain.device.store.journal import Entry, Event
from toolchain.device.store.layout import CURRENT, FOLDERS, GENERATIONS, Layout
from toolchain.device.store.recovery import Recovery
from toolchain.device.store.space import GcReport
from toolchain.device.store.state import FETCHED, VERIFIED, Held, Settings, State
from toolchain.device.store.verify import VerifyReport, verify

if TYPE_CHECKING:
    from toolchain.bundle import Bundle

Clock = Callable[[], str]
_READS = 5


def utc_now() -> str:
    """Return the system's time, UTC, as RFC 3339 has it, in seconds."""
    return datetime.now(timezone.utc).strftime(TIME_FORMAT)


class Store:
    """A store in the folder ``path``; ``clock`` tells the time of what is noted without one."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.layout = Layout(path)
        self._clock = clock

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        root: bytes | None,
        settings: Settings | None = None,
        clock: Clock = utc_now,
    ) -> Store:
        """Make a store in ``path``, which may be an empty folder; ``root``: TUF's root metadata.

        Without ``root`` no release can be verified. Raises ExistsError where a store is, and
        StorageError.
        """
        store = cls(Path(path).absolute(), clock)
        new = not exists(store.path)
        make_folder(store.path, fix="choose a folder that you may write to")
        if new:
            durable.sync_folder(store.path.parent)
        with store._locked():
            store._fill(root, settings or Settings())
        return store

    @classmethod
    def open(cls, path: str | Path, *, clock: Clock = utc_now) -> Store:
        """Return the store in ``path``. Raises StorageError where none is."""
        store = cls(Path(path).absolute(), clock)
        if not is_file(store.layout.state):
            raise StorageError(
                f"expected a store in {path}, got none", fix="make one: da3 device init"
            )
        return store

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Be the only writer inside the block. Raises LockedError, which names the other one."""
        with self._locked():
            self._make_folders()
            yield Writer(self.layout, self._clock)

    def state(self) -> State:
        """Return the state. Raises StoreDamagedError, StorageError."""
        return states.read(self.layout)

    def history(self) -> tuple[Entry, ...]:
        """Return the journal, oldest entry first. Raises StoreDamagedError, StorageError."""
        for _ in range(_READS - 1):
            # A writer may come between the two reads.
            with suppress(Da3Error):
                return journal.read(self.layout, self.state().journal)
        return journal.read(self.layout, self.state().journal)

    def verify(self) -> VerifyReport:
        """Compare every byte on the disk with its digest; says what it could not check.

        Raises StoreDamagedError for a state that is damaged, StorageError.
        """
        return verify(self.layout, self.state())

    def domain(self, name: str) -> Path:
        """Return what an application opens: ``domains/<name>/current``, which leads on."""
        return self.layout.domain(Unit("domains", name).name) / CURRENT

    def backbone(self, name: str) -> Path:
        """Return where the current backbone ``name`` is; the link goes with each generation."""
        return self.path / CURRENT / str(Unit("backbones", name))

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.layout.lock, what=f"the store {self.path}")

    def _make_folders(self) -> None:
        for name in FOLDERS:
            make_folder(self.path / name, fix="check the disk and the owner of the store")

    def _fill(self, root: bytes | None, settings: Settings) -> None:
        if exists(self.layout.state):
            raise ExistsError(
                f"expected no store in {self.path}, got one",
                fix="use it, or choose another folder",
            )
        self._make_folders()
        if root is not None:
            write_atomic(self.layout.trust_root, root, overwrite=True)
        durable.discard(self.layout.journal)
        state = State(settings=settings)
        event = Event(self._clock(), "CREATED", {"root": root is not None})
        head = journal.append(
            self.layout, state.journal, [event], limit_bytes=settings.journal_bytes
        )
        # All names in the folder come before that of the state, which makes it a store.
        durable.sync_folder(self.path)
        states.write(self.layout, replace(state, journal=head), new=True)


class Writer:
    """The one who may change a store; made by :meth:`Store.writing`.

    Times are RFC 3339 in UTC and seconds (``2026-01-31T12:00:00Z``); they are noted and never
    compared. A unit is a :class:`toolchain.core.units.Unit` or its text.
    """

    def __init__(self, layout: Layout, clock: Clock) -> None:
        self._layout = layout
        self._clock = clock
        self._state = states.read(layout)

    @property
    def state(self) -> State:
        """The state as it is on the disk."""
        return self._state

    # -- releases ----------------------------------------------------------------------------------

    def part(self, digest: str, size: int) -> Path:
        """Return the file into which the bytes of ``digest`` are loaded, on from where it ends.

        Raises QuotaError if ``size`` bytes, less those that are there, are too many.
        """
        path = self._layout.part(digest)
        there = path.stat().st_size if is_file(path) else 0
        if there > size or (there == 0 and exists(path)):
            durable.discard(path)
            there = 0
        space.require_room(self._layout, self._state, size - there)
        return path

    def drop_part(self, digest: str) -> None:
        """Remove a download, whole or not. Raises StorageError."""
        durable.discard(self._layout.part(digest))

    def fetched(
        self,
        unit: Unit | str,
        counter: int,
        digest: str,
        *,
        signed: bool = True,
        now: str | None = None,
    ) -> None:
        """Note that all bytes of a release have come. Raises FloorError, StoreError."""
        self._note_release(FETCHED, unit, counter, digest, signed, now)

    def verified(
        self,
        unit: Unit | str,
        counter: int,
        digest: str,
        *,
        signed: bool = True,
        now: str | None = None,
    ) -> None:
        """Note that the bytes were read again and are right. Raises FloorError, StoreError."""
        self._note_release(VERIFIED, unit, counter, digest, signed, now)

    def add_release(
        self,
        unit: Unit | str,
        counter: int,
        opened: Bundle,
        tested_with: str,
        *,
        signed: bool,
        now: str | None = None,
    ) -> Path:
        """Install a verified bundle and return its folder.

        ``tested_with``: what the self-test ran on, as ``installed.write`` takes it; empty for a
        bundle that was not tested. Raises FloorError for a counter below the floor, StoreError for
        one that named other content, QuotaError, UsageError for a bundle of another domain,
        StorageError. Nothing has changed then.
        """
        unit = _unit(unit)
        self._require(unit, counter, opened.manifest_digest, opened.size_bytes, signed=signed)
        held = content.put_bundle(self._layout, unit, opened, tested_with)
        return self._add(held, counter, signed=signed, now=now)

    def add_backbone(
        self,
        unit: Unit | str,
        counter: int,
        folder: Path,
        *,
        signed: bool,
        now: str | None = None,
    ) -> Path:
        """Install a copy of a backbone artefact and return its folder; raises as for a release."""
        unit = _unit(unit)
        digest = content.backbone_digest(folder)
        self._require(unit, counter, digest, space.used_bytes(folder), signed=signed)
        held = content.put_backbone(self._layout, unit, folder)
        return self._add(held, counter, signed=signed, now=now)

    # -- what runs ---------------------------------------------------------------------------------

    def activate(self, changes: Mapping[str, str | None], *, now: str | None = None) -> int:
        """Let the current generation with ``changes`` run, as a trial; return its number.

        ``changes``: by the text of a unit the digest of its release, None to remove it. The state
        TRYING is durable before the one rename. Raises as :func:`steps.trying`, and StorageError;
        the generation that ran runs on then.
        """
        at = self._at(now)
        wanted = {str(_unit(unit)): digest for unit, digest in changes.items()}
        there = [int(name) for name in _numbers(self._layout)]
        number = max([self._state.last, *there]) + 1
        following, events = steps.trying(self._state, wanted, number, at)
        made = following.generation(number)
        assert made is not None  # the step has made it
        generation.make_domains(self._layout, made.units)
        generation.make(self._layout, made)
        self._note(following, events)
        try:
            self._point(following)
        except StorageError:
            with suppress(StorageError):
                self._note(*steps.abandoned(following, at))
                self._point(self._state)
            raise
        return number

    def commit(self, *, now: str | None = None) -> None:
        """The trial has passed: COMMITTED, and the floors of its units rise. Raises TrialError."""
        self._note(*steps.committed(self._state, self._at(now)))

    def roll_back(self, *, reason: str, now: str | None = None) -> None:
        """Let the generation before run again: that before the trial, or before the last commit.

        Raises StoreError where there is none, StorageError.
        """
        following, events = steps.rolled_back(self._state, reason, self._at(now))
        try:
            self._note(following, events)
        except StorageError:
            # A full disk: what failed stops all the same, and the next start abandons the trial.
            with suppress(StorageError):
                self._point(following)
            raise
        self._point(following)

    def recover(self, *, now: str | None = None) -> Recovery:
        """Put the store right after a start of the device; to be called once for each start.

        A trial that runs is counted; beyond ``settings.attempts`` it is rolled back. Raises
        StorageError.
        """
        return recovery.recover(self._layout, self._state, self._note, self._at(now))

    # -- what is remembered ------------------------------------------------------------------------

    def raise_floors(
        self, metadata: Mapping[str, int], clock: str, *, now: str | None = None
    ) -> None:
        """Raise the floors of TUF's roles and of the clock; what is lower changes nothing."""
        self._note(*steps.raised(self._state, metadata, clock, self._at(now)))

    def report(self, about: Notes, *, now: str | None = None) -> int:
        """Keep a report until it is confirmed; return its number."""
        self._note(*steps.reported(self._state, about, self._at(now)))
        return self._state.reported

    def confirm(self, report: int, *, now: str | None = None) -> None:
        """A report has arrived and need not be kept."""
        self._note(*steps.confirmed(self._state, report, self._at(now)))

    def gc(self, *, keep_parts: Collection[str] = (), now: str | None = None) -> GcReport:
        """Remove what neither runs, nor ran before, nor is under way.

        ``keep_parts``: digests of downloads that go on. Raises StorageError.
        """
        self._note(*steps.forgotten(self._state, self._at(now)))
        return space.removed(self._layout, space.garbage(self._layout, self._state, keep_parts))

    # -- inside ------------------------------------------------------------------------------------

    def _at(self, now: str | None) -> str:
        return self._clock() if now is None else now

    def _note(self, state: State, events: tuple[Event, ...]) -> None:
        """Write events and state, durably, if there are any; the names in the root with them."""
        if not events:
            return
        states.require_readable(state)
        limit = state.settings.journal_bytes
        try:
            head = journal.append(self._layout, state.journal, events, limit_bytes=limit)
            noted = replace(state, journal=head)
            states.write(self._layout, noted)
            self._state = noted
        except StorageError:
            # The name may have come all the same, where only the last fsync failed.
            with suppress(Da3Error):
                self._state = states.read(self._layout)
            raise

    def _point(self, state: State) -> None:
        generation.point(self._layout, current=state.current, previous=state.previous)
        durable.sync_folder(self._layout.root)

    def _note_release(
        self,
        mark: str,
        unit: Unit | str,
        counter: int,
        digest: str,
        signed: bool,
        now: str | None,
    ) -> None:
        held = Held(
            unit=str(_unit(unit)), counter=counter, digest=digest, state=mark, signed=signed
        )
        self._note(*steps.noted(self._state, held, self._at(now)))

    def _require(self, unit: Unit, counter: int, digest: str, size: int, *, signed: bool) -> None:
        """Refuse a release before a byte of it is written."""
        asked = Held(unit=str(unit), counter=counter, digest=digest, state=FETCHED, signed=signed)
        steps.require_counter(self._state, asked)
        space.require_room(self._layout, self._state, size)

    def _add(self, held: Held, counter: int, *, signed: bool, now: str | None) -> Path:
        release = replace(held, counter=counter, signed=signed)
        self._note(*steps.installed(self._state, release, self._at(now)))
        return self._layout.content(release.unit, release.digest)


def _unit(unit: object) -> Unit:
    return unit if isinstance(unit, Unit) else Unit.parse(str(unit))


def _numbers(layout: Layout) -> list[str]:
    return [name for name in names(layout.root / GENERATIONS) if name.isdigit()]
