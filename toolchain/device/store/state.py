"""The state of a store, schema ``da3.store/1``: what is to be current, and what was promised.

Rules of this file: values, and the one form in which they stand in ``state.json``: the digest of
the JSON on a line of its own, and the canonical JSON. Where links and state disagree, the state
counts, and :mod:`toolchain.device.store.recovery` puts the links right. How a state follows from
another one is in :mod:`toolchain.device.store.steps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toolchain.core.digest import headed, headed_body
from toolchain.core.errors import (
    BundleError,
    Da3Error,
    Fault,
    StoreDamagedError,
    StoreError,
    UsageError,
)
from toolchain.core.fields import (
    ListOf,
    Nullable,
    Section,
    SectionOf,
    TableOf,
    choice,
    key,
    printable,
    whole,
)
from toolchain.core.files import read_limited, write_atomic
from toolchain.core.sealed import SealedFile
from toolchain.core.units import UNIT, BackboneId
from toolchain.core.words import (
    BOOLEAN,
    DIGEST,
    IDENTIFIER,
    NATURAL,
    NOTES,
    TIME,
    Document,
    Notes,
)
from toolchain.device.store.layout import Layout

SCHEMA = "da3.store/1"
FETCHED, VERIFIED, INSTALLED = "FETCHED", "VERIFIED", "INSTALLED"
TRYING, COMMITTED, ROLLED_BACK = "TRYING", "COMMITTED", "ROLLED_BACK"
STATES = (FETCHED, VERIFIED, INSTALLED, TRYING, COMMITTED, ROLLED_BACK)
NO_DIGEST = "sha256:" + "0" * 64
FIRST_TIME = "1970-01-01T00:00:00Z"

MAX_UNITS, MAX_HELD, MAX_FAILED, MAX_REPORTS = 256, 1024, 64, 256
MAX_ROLES = 4096
_FIX = "take the store's disk for damaged: make another store (da3 device init) and install anew"


@dataclass(frozen=True, slots=True)
class StoredFile(SealedFile):
    """One file of a release's content; ``size`` in bytes."""

    name: str = key(IDENTIFIER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Section):
    """A release that the store knows of; ``digest`` is that of its manifest.

    ``fits``: the backbone that a domain needs, or that a backbone is. It and ``files`` are there
    from INSTALLED on. COMMITTED stays, when a later release takes its place.
    """

    unit: str = key(UNIT)
    counter: int = key(NATURAL)
    digest: str = key(DIGEST)
    state: str = key(choice(*STATES))
    signed: bool = key(BOOLEAN)
    files: tuple[StoredFile, ...] = key(ListOf(SectionOf(StoredFile), 0, 256), default=())
    fits: BackboneId | None = key(Nullable(SectionOf(BackboneId)), default=None)

    @property
    def bytes(self) -> int:
        """Bytes of its content on the disk."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Generation(Section):
    """Which release of each unit runs, by its digest."""

    number: int = key(whole(1, 2**53 - 1))
    units: Mapping[str, str] = key(TableOf(UNIT, DIGEST, 0, MAX_UNITS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Section):
    """The generation that is tried; ``before`` and ``fallback`` were current and previous.

    ``units``: what each release was before, null for a unit that is removed. ``starts``: how often
    the device has started since. 0 names no generation.
    """

    generation: int = key(whole(1, 2**53 - 1))
    before: int = key(NATURAL)
    fallback: int = key(NATURAL)
    units: Mapping[str, str | None] = key(TableOf(UNIT, Nullable(choice(*STATES)), 0, MAX_UNITS))
    starts: int = key(NATURAL)
    since: str = key(TIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Section):
    """A release that was rolled back here, so that nobody tries it again at once."""

    unit: str = key(UNIT)
    counter: int = key(NATURAL)
    digest: str = key(DIGEST)
    reason: str = key(printable(300))
    at: str = key(TIME)


@dataclass(frozen=True, slots=True)
class Report(Section):
    """What the device has to say until somebody confirms it."""

    id: int = key(NATURAL)
    at: str = key(TIME)
    about: Notes = key(NOTES)


@dataclass(frozen=True, slots=True)
class Floors(Section):
    """The lowest that may come: counters by unit, versions by TUF role, and a time. None falls."""

    releases: Mapping[str, int] = key(TableOf(UNIT, NATURAL, 0, MAX_UNITS), default_factory=dict)
    metadata: Mapping[str, int] = key(
        TableOf(printable(100), NATURAL, 0, MAX_ROLES), default_factory=dict
    )
    clock: str = key(TIME, default=FIRST_TIME)


@dataclass(frozen=True, slots=True)
class Head(Section):
    """The end of the journal as it was promised: entries, digest of the last, bytes of the file."""

    entries: int = key(NATURAL, default=0)
    digest: str = key(DIGEST, default=NO_DIGEST)
    size: int = key(NATURAL, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Section):
    """``attempts``: starts that a trial may take. ``quota_bytes``: of the whole store; null: none.

    ``journal_bytes``: of one of the journal's two segments.
    """

    attempts: int = key(whole(1, 100), default=3)
    quota_bytes: int | None = key(Nullable(NATURAL), default=None)
    journal_bytes: int = key(whole(1024, 64 << 20), default=256 << 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class State(Document):
    """All that the store remembers. Number 0 names no generation."""

    FILE = "state.json"
    LIMIT_BYTES = 8 << 20

    schema: str = key(choice(SCHEMA), default=SCHEMA)
    settings: Settings = key(SectionOf(Settings), default=Settings())
    held: tuple[Held, ...] = key(ListOf(SectionOf(Held), 0, MAX_HELD), default=())
    generations: tuple[Generation, ...] = key(ListOf(SectionOf(Generation), 0, 4), default=())
    current: int = key(NATURAL, default=0)
    previous: int = key(NATURAL, default=0)
    last: int = key(NATURAL, default=0)
    trial: Trial | None = key(Nullable(SectionOf(Trial)), default=None)
    floors: Floors = key(SectionOf(Floors), default_factory=Floors)
    failed: tuple[Failed, ...] = key(ListOf(SectionOf(Failed), 0, MAX_FAILED), default=())
    reports: tuple[Report, ...] = key(ListOf(SectionOf(Report), 0, MAX_REPORTS), default=())
    reported: int = key(NATURAL, default=0)
    journal: Head = key(SectionOf(Head), default=Head())

    def generation(self, number: int) -> Generation | None:
        """Return a generation by its number, None for 0."""
        return next((one for one in self.generations if one.number == number), None)

    @property
    def running(self) -> Mapping[str, Held]:
        """The release of each unit in the current generation."""
        one = self.generation(self.current)
        return {} if one is None else {u: self.release(u, d) for u, d in one.units.items()}

    def find(self, unit: str, digest: str) -> Held | None:
        """Return a release that the store knows of, None for another."""
        return next((h for h in self.held if (h.unit, h.digest) == (unit, digest)), None)

    def release(self, unit: str, digest: str) -> Held:
        """Return a release that the store holds. Raises UsageError for another."""
        found = self.find(unit, digest)
        if found is None or not found.files:
            raise UsageError(
                f"expected an installed release of {unit}, got {digest!r:.80}, which is not",
                fix="install it first",
            )
        return found

    def contradictions(self) -> Iterator[Fault]:
        """Yield the faults between fields that are right one by one."""
        numbers = [one.number for one in self.generations]
        named = {"current": self.current, "previous": self.previous}
        if self.trial is not None:
            named |= {"trial.before": self.trial.before, "trial.fallback": self.trial.fallback}
            if self.trial.generation != self.current:
                yield Fault("trial.generation", f"expected the current one, {self.current}")
        for path, number in named.items():
            if number and number not in numbers:
                yield Fault(path, f"expected 0 or one of the generations, got {number}")
        if len(set(numbers)) < len(numbers) or max(numbers, default=0) > self.last:
            yield Fault("generations", "expected each number once, and none above `last`")
        counted = Counter((one.unit, one.digest) for one in self.held)
        if any(count > 1 for count in counted.values()):
            yield Fault("held", "expected each release of a unit once")
        with_content = {(one.unit, one.digest) for one in self.held if one.files and one.fits}
        for one in self.generations:
            if not set(one.units.items()) <= with_content:
                yield Fault("generations", f"{one.number} names what is not installed")
        ids = [report.id for report in self.reports]
        if sorted(set(ids)) != ids or max(ids, default=0) > self.reported:
            yield Fault("reports", "expected rising ids up to `reported`")


def read(layout: Layout) -> State:
    """Return the state on the disk.

    Raises StoreDamagedError for one that is damaged or of another schema, StorageError where there
    is none.
    """
    data = read_limited(layout.state, limit_bytes=State.LIMIT_BYTES + 100, what="store's state")
    body = headed_body(data)
    if body is None:
        raise StoreDamagedError(
            f"{layout.state}: expected the text of its digest {data[:71]!r}, got another", fix=_FIX
        )
    try:
        return State.from_json(body)
    except BundleError as err:
        raise StoreDamagedError(f"{layout.state}: {err.message}", fix=_FIX) from err


def require_readable(state: State) -> None:
    """Raise StoreError for a state that no reader would accept: nothing such is ever written."""
    try:
        State.from_json(state.to_json())
    except Da3Error as err:
        raise StoreError(
            f"expected what a store can remember, got more or something else: {err.message}",
            fix="da3 device gc; confirm reports; name the domains that the device is to hold",
        ) from err


def write(layout: Layout, state: State, *, new: bool = False) -> None:
    """Write the state, durably, with all names in the store's folder.

    ``new``: it must not be there yet. Raises StorageError, ExistsError.
    """
    write_atomic(layout.state, headed(state.to_json()), overwrite=not new)
