"""What a device does with its store, step by step, and the law that holds after a power cut.

Rules of this file: every method of the writer that makes something durable is called here, so that
a cut is tried in the middle of each. A step that returned was acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import stored
from tests.support.stored import BACKBONE, PATCHED, SAMPLE, TOY, add, bundle
from toolchain.core.errors import StorageError
from toolchain.device.store import content, generation
from toolchain.device.store.journal import Entry
from toolchain.device.store.layout import CURRENT
from toolchain.device.store.state import State
from toolchain.device.store.store import Store

Damage = Callable[[Path, bytes], None]


def steps(path: Path, damage: Damage | None = None) -> Iterator[str]:
    """Do it all in ``path``, and yield the name of each step once it was acknowledged.

    ``damage``: changes a file behind everybody's back. Without it these steps are left out.
    """
    # Short segments: the journal is rotated under way.
    store = stored.create(path, journal_bytes=2048)
    yield "create"
    with store.writing() as writer:
        toy = add(writer, TOY)
        yield "install a backbone"
        sample = add(writer, SAMPLE)
        yield "install a domain"
        writer.activate({TOY: toy, SAMPLE: sample})
        yield "activate"
        writer.commit()
        yield "commit"
        digest = bundle("patched").manifest_digest
        writer.fetched(PATCHED, 3, digest)
        yield "fetched"
        writer.verified(PATCHED, 3, digest)
        yield "verified"
        add(writer, PATCHED, 3)
        yield "install another"
        writer.raise_floors({"root": 2, "domain-patched": 3}, "2026-02-01T00:00:00Z")
        yield "floors"
        writer.activate({PATCHED: digest})
        yield "activate another"
    with store.writing() as writer:
        writer.recover()
        yield "start while trying"
        writer.roll_back(reason="it answers nothing")
        yield "roll back"
        writer.gc()
        yield "collect"
        add(writer, PATCHED, 3)
        yield "install again"
        writer.activate({PATCHED: digest})
        yield "activate again"
        writer.commit()
        yield "commit again"
        report = writer.report({"unit": PATCHED, "outcome": "committed"})
        yield "report"
        writer.confirm(report)
        yield "confirm"
        writer.activate({SAMPLE: None})
        yield "activate a removal"
        writer.report({"unit": SAMPLE, "outcome": "removed"})
        yield "report the removal"
        writer.roll_back(reason="it is missed")
        yield "roll the removal back"
    if damage is not None:
        yield from _damaged(store, damage)


def _damaged(store: Store, damage: Damage) -> Iterator[str]:
    """The content of what runs is damaged: nothing was before it, so the backbone runs alone."""
    damage(store.domain("sample").resolve() / "bundle.da3b", b"zeros")
    yield "damage"
    with store.writing() as writer:
        writer.recover()
        yield "fall"
        add(writer, SAMPLE, 2)
        yield "install anew"
        writer.activate({SAMPLE: bundle("sample").manifest_digest})
        yield "activate anew"
        writer.commit()
        yield "commit anew"


@dataclass(frozen=True)
class Promise:
    """What was acknowledged with a step: the state and the last entry of the journal."""

    step: str
    state: State
    last: Entry

    @classmethod
    def of(cls, store: Store, step: str) -> Promise:
        return cls(step, store.state(), store.history()[-1])


def view(state: State) -> dict[str, Any]:
    """What of a state must be one of two after a cut."""
    return {
        "running": {unit: one.digest for unit, one in state.running.items()},
        "held": {(one.unit, one.digest): (one.state, one.counter) for one in state.held},
        "floors": state.floors,
        "failed": [(one.unit, one.digest) for one in state.failed],
        "reports": [one.id for one in state.reports],
        "trial": state.trial and sorted(state.trial.units),
    }


def broken(path: Path, old: Promise | None, new: Promise | None, *more: Promise) -> str:
    """Say how the law is broken in the store at ``path`` after a cut, nothing where it holds.

    ``old``: the last step that was acknowledged, ``new``: the one that was under way; ``more``:
    what may come out as well. After damage only the new state may come out.
    """
    try:
        store = Store.open(path, clock=stored.clock)
    except StorageError:
        return "" if old is None else "the store is gone"
    sound = old is None or old.step != "damage"
    ends = [one for one in ((old, new, *more) if sound else (new,)) if one is not None]
    before = store.state()
    if wrong := _at_boot(store, before, [old, new], sound=sound):
        return f"before recovery: {wrong}"
    with store.writing() as writer:
        writer.recover()
    after = store.state()
    if not (report := store.verify()).ok:
        return f"verify: {report.faults}"
    if view(after) not in [view(one.state) for one in ends]:
        return f"neither old nor new: {view(after)}"
    if left := [str(one) for one in path.rglob("*.partial")]:
        return f"left over: {left}"
    root = store.layout.trust_root
    if not root.is_file() or root.read_bytes() != b"{}":
        return "the root is gone"
    return _remembered(store, after, old)


def _at_boot(store: Store, state: State, ends: Sequence[Promise | None], *, sound: bool) -> str:
    """An application may open ``current`` before anybody has put anything right.

    Not ``sound``: somebody has damaged what runs, so its bytes are not looked at.
    """
    promised = [one.state for one in ends if one is not None]
    known = [{u: r.digest for u, r in one.running.items()} for one in promised]
    number = generation.pointed(store.layout, CURRENT)
    if number == 0:
        return "" if {} in known or ends[0] is None else "current is gone"
    # What ran may run on for as long as a rollback takes; nothing new runs that is not noted.
    was = None if ends[0] is None else ends[0].state.generation(number)
    if (one := state.generation(number) or was) is None:
        return f"generation {number} runs, which the state does not know"
    if dict(one.units) not in known:
        return f"generation {number} is neither the old nor the new one"
    if not generation.is_made(store.layout, one):
        return f"the links of generation {number} are gone"
    for unit, digest in one.units.items() if sound else ():
        held = next(filter(None, (s.find(unit, digest) for s in (state, *promised))))
        if faults := content.faults(store.layout, held):
            return f"{unit}: {faults}"
        kind, _, name = unit.partition("/")
        if kind == "domains" and not store.domain(name).is_dir():
            return f"{unit}: applications do not find it"
    return ""


def _remembered(store: Store, after: State, old: Promise | None) -> str:
    if old is None:
        return ""
    entries = {entry.number: entry for entry in store.history()}
    if entries.get(old.last.number) != old.last:
        return "the journal lost an entry"
    if any(entry.what == "JOURNAL_LOST" for entry in entries.values()):
        return "the journal was damaged"
    if old.state.trial is not None and after.trial is not None:
        same = old.state.trial.generation == after.trial.generation
        if same and after.trial.starts <= old.state.trial.starts:
            return "a start was not counted"
    return ""


def warm() -> None:
    """Read the bundles before anything is recorded."""
    for name in ("sample", "patched"):
        bundle(name)
    assert BACKBONE.is_dir()
