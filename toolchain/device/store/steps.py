"""The steps of a store: how one state follows from another.

Rules of this file: pure functions of states; no clock and no disk. Each returns the state and the
events that lead to it, or raises before anything was written. Floors never fall. Only a commit, and
content that was committed before, raises the floor of a unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from toolchain.core.errors import FloorError, StoreError, TrialError, UsageError
from toolchain.core.units import is_backbone
from toolchain.core.words import Note, Notes
from toolchain.device.store.journal import Event
from toolchain.device.store.state import (
    COMMITTED,
    INSTALLED,
    MAX_FAILED,
    MAX_HELD,
    MAX_REPORTS,
    ROLLED_BACK,
    TRYING,
    Failed,
    Floors,
    Generation,
    Held,
    Report,
    State,
    Trial,
)

Step = tuple[State, tuple[Event, ...]]


def noted(state: State, release: Held, at: str) -> Step:
    """A release is FETCHED or VERIFIED. Raises FloorError, StoreError, UsageError."""
    require_counter(state, release)
    known = state.find(release.unit, release.digest)
    if known is not None and known.files:
        return state, ()
    return _with(state, release), (_event(at, release.state, release),)


def installed(state: State, release: Held, at: str) -> Step:
    """The content of a release is whole and durable.

    The same content may come again under a higher counter: a rollback does that. If it was
    committed and runs, the counter alone is new, and its floor rises with it.
    """
    require_counter(state, release)
    if (known := state.find(release.unit, release.digest)) is not None:
        signed, counter = known.signed or release.signed, max(known.counter, release.counter)
        release = replace(release, signed=signed, counter=counter)
    running = state.running.get(release.unit)
    if running is not None and running.digest == release.digest:
        release = replace(release, state=running.state)
    floors = _raised(state.floors, [release] if release.state == COMMITTED else [])
    following = replace(_with(state, release), floors=floors)
    return following, (_event(at, release.state, release),)


def require_counter(state: State, release: Held) -> None:
    """Raise unless the release may follow: its counter is no lower than the floor, and its own.

    Raises FloorError, and StoreError where other content has the counter (a key that signed twice).
    """
    if not release.signed:
        return
    floor = state.floors.releases.get(release.unit, 0)
    if release.counter < floor:
        raise FloorError(
            f"{release.unit}: expected a release of counter {floor} or above, got "
            f"{release.counter} ({release.digest})",
            fix="publish the content that you want as a new release, with a higher counter",
        )
    for other in state.held:
        same = other.signed and (other.unit, other.counter) == (release.unit, release.counter)
        if same and other.digest != release.digest:
            raise StoreError(
                f"{release.unit}: expected counter {release.counter} to name {other.digest}, got "
                f"{release.digest}",
                fix="release again with a higher counter; find out who signed both",
            )


def trying(state: State, changes: Mapping[str, str | None], number: int, at: str) -> Step:
    """A new generation is to be tried: the current one with ``changes``.

    Raises TrialError while another one is tried; UsageError for no change and for a release that is
    not installed; FloorError; StoreError for a domain whose backbone would not be there.
    """
    if state.trial is not None:
        raise TrialError(
            f"expected no trial under way, got that of generation {state.trial.generation}",
            fix="commit it or roll it back first",
        )
    before = {} if (one := state.generation(state.current)) is None else dict(one.units)
    units = {u: d for u, d in {**before, **changes}.items() if d is not None}
    tried = [state.release(u, d) for u, d in changes.items() if d is not None]
    for release in tried:
        require_counter(state, release)
    if units == before and all(one.state == COMMITTED for one in tried):
        raise UsageError("expected a change, got what runs already", fix="there is nothing to do")
    _require_backbones({u: state.release(u, d) for u, d in units.items()})
    following = replace(
        state,
        held=_marked(state.held, tried, TRYING),
        generations=(*state.generations, Generation(number, units)),
        current=number,
        previous=state.current,
        last=number,
        trial=_begun(state, changes, number, at),
    )
    about: dict[str, Note] = {"generation": number, "before": state.current}
    events = [_event(at, TRYING, one, about) for one in tried]
    gone = [Event(at, "REMOVING", {"unit": u, **about}) for u, d in changes.items() if d is None]
    return following, (*events, *gone)


def committed(state: State, at: str) -> Step:
    """The trial has passed: only now the floors rise. Raises TrialError without a trial."""
    trial = _trial(state)
    tried = [one for one in state.running.values() if one.state == TRYING]
    done = [replace(one, state=COMMITTED) for one in tried]
    following = replace(
        state,
        held=_marked(state.held, tried, COMMITTED),
        generations=_only(state, state.current, state.previous),
        trial=None,
        floors=_raised(state.floors, done),
        failed=tuple(f for f in state.failed if all(not _is(f, one) for one in done)),
    )
    about = {"generation": trial.generation}
    events = [_event(at, COMMITTED, one, about) for one in done]
    return following, tuple(events) or (Event(at, COMMITTED, about),)


def rolled_back(state: State, reason: str, at: str) -> Step:
    """The generation before is current again; the releases that go are remembered as failed.

    Raises StoreError where there is none before.
    """
    trial = state.trial
    target = state.previous if trial is None else trial.before
    fallback = 0 if trial is None else trial.fallback
    if trial is None and target == 0:
        raise StoreError(
            "expected a generation before the current one, got none", fix="install a release"
        )
    old = state.generation(target)
    kept = {} if old is None else old.units
    gone = [one for one in state.running.values() if kept.get(one.unit) != one.digest]
    said = reason_of(reason)
    failed = [
        Failed(unit=o.unit, counter=o.counter, digest=o.digest, reason=said, at=at) for o in gone
    ]
    others = [f for f in state.failed if all(not _is(f, one) for one in gone)]
    following = replace(
        state,
        held=_marked(state.held, gone, ROLLED_BACK),
        generations=_only(state, target, fallback),
        current=target,
        previous=fallback,
        trial=None,
        failed=tuple([*others, *failed][-MAX_FAILED:]),
    )
    about: dict[str, Note] = {"generation": state.current, "to": target, "reason": said}
    events = [_event(at, ROLLED_BACK, one, about) for one in gone]
    return following, tuple(events) or (Event(at, ROLLED_BACK, about),)


def abandoned(state: State, at: str) -> Step:
    """The trial never began: the device went down, or the disk refused, before its first link."""
    trial = _trial(state)
    marks = {u: mark for u, mark in trial.units.items() if mark is not None}
    following = replace(
        state,
        held=tuple(
            replace(one, state=marks.get(one.unit, INSTALLED)) if one.state == TRYING else one
            for one in state.held
        ),
        generations=_only(state, trial.before, trial.fallback),
        current=trial.before,
        previous=trial.fallback,
        trial=None,
    )
    return following, (Event(at, "ABANDONED", {"generation": trial.generation}),)


def started(state: State, at: str) -> Step:
    """The device has started while a generation is tried; beyond ``attempts`` it is rolled back."""
    trial = _trial(state)
    starts = trial.starts + 1
    if starts > state.settings.attempts:
        return rolled_back(state, f"{starts} starts without a commit", at)
    following = replace(state, trial=replace(trial, starts=starts))
    return following, (Event(at, "STARTED", {"generation": trial.generation, "starts": starts}),)


def fallen(state: State, damaged: Mapping[tuple[str, str], str], at: str) -> Step:
    """Content of the current generation is damaged: the one before, or the backbones alone.

    ``damaged``: unit and digest, and what is wrong. Damaged releases are forgotten, so that they
    are installed anew; they are not failed ones. Without a whole backbone nothing is current.
    """
    trial = state.trial
    numbers = (state.previous, 0) if trial is None else (trial.before, trial.fallback)
    whole = [n for n in numbers if _is_whole(state.generation(n), damaged)]
    generations = _only(state, *whole[:1])
    current, last = (whole[0], state.last) if whole else (0, state.last)
    if not whole and (alone := _backbones(state, numbers, damaged)):
        current = last = state.last + 1
        generations = (Generation(current, alone),)
    held = tuple(
        replace(one, state=INSTALLED) if one.state == TRYING else one
        for one in state.held
        if (one.unit, one.digest) not in damaged
    )
    following = replace(
        state,
        held=held,
        generations=generations,
        current=current,
        previous=0,
        last=last,
        trial=None,
    )
    events = [
        Event(at, "DAMAGED", {"unit": unit, "digest": digest, "reason": reason_of(reason)})
        for (unit, digest), reason in damaged.items()
    ]
    return following, (*events, Event(at, "FALLEN", {"from": state.current, "to": current}))


def raised(state: State, metadata: Mapping[str, int], clock: str, at: str) -> Step:
    """Floors of metadata and clock rise where they can; a lower value changes nothing."""
    old = state.floors
    versions = {**old.metadata}
    for role, version in metadata.items():
        versions[role] = max(version, versions.get(role, 0))
    floors = replace(old, metadata=versions, clock=max(old.clock, clock))
    if floors == old:
        return state, ()
    return replace(state, floors=floors), (Event(at, "FLOORS", {"clock": floors.clock}),)


def reported(state: State, about: Notes, at: str) -> Step:
    """A report is kept until it is confirmed; of more than 256 the oldest goes.

    Its words may come from anywhere, so each becomes one printable line.
    """
    said = {name: reason_of(v) if isinstance(v, str) else v for name, v in about.items()}
    report = Report(state.reported + 1, at, said)
    reports = (*state.reports, report)[-MAX_REPORTS:]
    following = replace(state, reports=reports, reported=report.id)
    return following, (Event(at, "REPORT", {"id": report.id}),)


def confirmed(state: State, report: int, at: str) -> Step:
    """A report has arrived. One that was confirmed before changes nothing."""
    left = tuple(one for one in state.reports if one.id != report)
    if left == state.reports:
        return state, ()
    return replace(state, reports=left), (Event(at, "CONFIRMED", {"id": report}),)


def forgotten(state: State, at: str) -> Step:
    """Releases that nobody will run are no longer held; their content may be removed then."""
    running = {(u, d) for one in state.generations for u, d in one.units.items()}
    kept = tuple(one for one in state.held if _is_kept(state, one, running))
    gone = [one for one in state.held if one not in kept]
    if not gone:
        return state, ()
    return replace(state, held=kept), tuple(_event(at, "FORGOTTEN", one) for one in gone)


def _is_kept(state: State, one: Held, running: set[tuple[str, str]]) -> bool:
    """Whether a release runs, is the one before, or is under way."""
    if (one.unit, one.digest) in running:
        return True
    passed = one.signed and one.counter < state.floors.releases.get(one.unit, 0)
    return one.state not in (COMMITTED, ROLLED_BACK) and not passed


def reason_of(text: str) -> str:
    """Return ``text`` as one line of at most 300 printable characters."""
    line = "".join(sign if sign.isprintable() else " " for sign in text).strip()[:300].strip()
    return line or "no reason was given"


def _begun(state: State, changes: Mapping[str, str | None], number: int, at: str) -> Trial:
    """Return the trial of a generation, with what is needed to go back."""
    return Trial(
        generation=number,
        before=state.current,
        fallback=state.previous,
        units={
            unit: None if digest is None else state.release(unit, digest).state
            for unit, digest in changes.items()
        },
        starts=0,
        since=at,
    )


def _trial(state: State) -> Trial:
    if state.trial is None:
        raise TrialError("expected a trial under way, got none", fix="activate a release first")
    return state.trial


def _with(state: State, release: Held) -> State:
    """Return the state with ``release`` as its newest one."""
    others = tuple(
        one for one in state.held if (one.unit, one.digest) != (release.unit, release.digest)
    )
    if len(others) >= MAX_HELD:
        raise StoreError(f"expected at most {MAX_HELD} releases, got one more", fix="da3 device gc")
    return replace(state, held=(*others, release))


def _marked(held: Iterable[Held], which: Iterable[Held], mark: str) -> tuple[Held, ...]:
    chosen = {(one.unit, one.digest) for one in which}
    return tuple(
        replace(one, state=mark) if (one.unit, one.digest) in chosen else one for one in held
    )


def _only(state: State, *numbers: int) -> tuple[Generation, ...]:
    return tuple(one for one in state.generations if one.number in numbers)


def _raised(floors: Floors, releases: Iterable[Held]) -> Floors:
    """Unsigned releases stand outside of a unit's history and raise nothing."""
    counters = dict(floors.releases)
    for one in releases:
        if one.signed:
            counters[one.unit] = max(one.counter, counters.get(one.unit, 0))
    return replace(floors, releases=counters)


def _require_backbones(units: Mapping[str, Held]) -> None:
    """Raise StoreError unless each domain finds the backbone that it was verified against."""
    there = {one.fits for unit, one in units.items() if is_backbone(unit)}
    for unit, one in units.items():
        if one.fits not in there:
            assert one.fits is not None  # it is installed
            raise StoreError(
                f"{unit}: expected the backbone {one.fits.name} of {one.fits.graph_digest}, got "
                "none in the same generation",
                fix="activate the backbone and its domains in one step",
            )


def _is_whole(one: Generation | None, damaged: Mapping[tuple[str, str], str]) -> bool:
    return one is not None and not any(pair in damaged for pair in one.units.items())


def _backbones(
    state: State, numbers: Iterable[int], damaged: Mapping[tuple[str, str], str]
) -> dict[str, str]:
    """Return the first whole release of each backbone in the generations that there were."""
    found: dict[str, str] = {}
    # What was committed comes before what was tried.
    for one in map(state.generation, (*numbers, state.current)):
        for unit, digest in () if one is None else one.units.items():
            if is_backbone(unit) and (unit, digest) not in damaged:
                found.setdefault(unit, digest)
    return found


def _is(failed: Failed, release: Held) -> bool:
    return (failed.unit, failed.digest) == (release.unit, release.digest)


def _event(at: str, what: str, release: Held, about: Notes | None = None) -> Event:
    said: dict[str, Note] = {
        "unit": release.unit,
        "counter": release.counter,
        "digest": release.digest,
        "signed": release.signed,
    }
    return Event(at, what, {**said, **(about or {})})
