"""Recovery: what a store does when the device starts, whatever the power did before.

Rules of this file: the state counts, and links are put right by it. A trial whose link was never
exchanged is abandoned; one that runs is counted. Content that runs is read and compared, all of it.
Each step may itself be cut off: the next start takes it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from toolchain.core import durable
from toolchain.core.errors import StoreDamagedError
from toolchain.device.store import content, generation, journal, space, steps
from toolchain.device.store.journal import Event
from toolchain.device.store.layout import CURRENT, PREVIOUS, Layout
from toolchain.device.store.state import State, Trial


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found at a start.

    ``current``: the generation that runs, 0 for none. ``trial``: what is still tried. ``events``:
    what happened to trials and damaged content, as the journal has it. ``mended``: links and
    generations that were put right. ``removed``: leftovers, as paths below the store.
    """

    current: int
    trial: Trial | None
    events: tuple[Event, ...]
    mended: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def refused(self) -> bool:
        """Whether content was damaged and nothing whole is left that could run."""
        return self.current == 0 and any(event.what == "FALLEN" for event in self.events)


def recover(
    layout: Layout, state: State, note: Callable[[State, tuple[Event, ...]], None], at: str
) -> Recovery:
    """Bring the store into the state that it promised; ``note`` writes state and events, durably.

    Raises StorageError where the disk refuses, and can be called again then.
    """
    sound, aside = _journal(layout, state, at)
    after_trial, tried = _trial(layout, sound, at)
    whole, damage = _content(layout, after_trial, at)
    events = (*aside, *tried, *damage)
    mended = generation.faults(layout, whole)
    _make(layout, whole)
    if events:
        note(whole, events)
    if mended:
        _clear(layout)
        generation.point(layout, current=whole.current, previous=whole.previous)
        durable.sync_folder(layout.root)
    # At last: a generation that the state does not know may be the one that ran until now.
    gone = space.removed(layout, space.leftovers(layout, whole))
    return Recovery(whole.current, whole.trial, events, tuple(mended), gone.removed)


def _journal(layout: Layout, state: State, at: str) -> steps.Step:
    """Set a damaged journal aside, so that the device goes on."""
    try:
        journal.read(layout, state.journal)
    except StoreDamagedError as err:
        head = journal.set_aside(layout, state.journal)
        reason = steps.reason_of(err.message)
        return replace(state, journal=head), (Event(at, "JOURNAL_LOST", {"reason": reason}),)
    return state, ()


def _trial(layout: Layout, state: State, at: str) -> steps.Step:
    if state.trial is None:
        return state, ()
    if generation.pointed(layout, CURRENT) != state.trial.generation:
        return steps.abandoned(state, at)
    return steps.started(state, at)


def _content(layout: Layout, state: State, at: str) -> steps.Step:
    """Compare what runs with what was laid down; only if it is damaged, what ran before, too."""
    damaged = _damaged(layout, state, state.current)
    if not damaged:
        return state, ()
    before = {one.number for one in state.generations} - {state.current}
    for number in before:
        damaged |= _damaged(layout, state, number)
    return steps.fallen(state, damaged, at)


def _damaged(layout: Layout, state: State, number: int) -> dict[tuple[str, str], str]:
    one = state.generation(number)
    found = {}
    for unit, digest in {} if one is None else one.units.items():
        if faults := content.faults(layout, state.release(unit, digest)):
            found[unit, digest] = "; ".join(faults)
    return found


def _clear(layout: Layout) -> None:
    """Remove what is no link and has the name of one: a rename does not replace a folder."""
    for name in (CURRENT, PREVIOUS):
        if generation.pointed(layout, name) < 0:
            durable.discard(layout.root / name)


def _make(layout: Layout, state: State) -> None:
    """Make the folders of links anew that are not as the state says."""
    for one in state.generations:
        if not generation.is_made(layout, one):
            durable.discard(layout.generation(one.number))
            generation.make(layout, one)
        generation.make_domains(layout, one.units)
