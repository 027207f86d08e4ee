"""Verification of a store: every byte on the disk against what the state and the journal say.

Rules of this file: it writes nothing and takes no lock, so it can run beside everything else. It
says what it cannot check. Digests show damage. Whether a release is genuine was checked when it
came.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.core.errors import Da3Error
from toolchain.core.files import is_file, names
from toolchain.device.store import content, generation, journal
from toolchain.device.store.layout import Layout
from toolchain.device.store.state import State


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What holds, what is wrong, and what nobody could say here, a line each."""

    checked: tuple[str, ...]
    faults: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def verify(layout: Layout, state: State) -> VerifyReport:
    """Compare the store with its state."""
    checked, faults = ["state: the text of its digest, by its schema"], []
    try:
        entries = journal.read(layout, state.journal)
        checked.append(f"journal: {len(entries)} entries, an unbroken chain to the state's")
    except Da3Error as err:
        faults.append(err.message)
    links = generation.faults(layout, state)
    faults += links
    if not links:
        checked.append(f"links: those of generation {state.current} and {state.previous}")
    for one in (one for one in state.held if one.files):
        name = f"{one.unit} {one.counter} ({one.digest})"
        wrong = content.faults(layout, one)
        faults += [f"{name}: {fault}" for fault in wrong]
        if not wrong:
            checked.append(f"{name}: {len(one.files)} files, {one.bytes} bytes, every digest")
    return VerifyReport(tuple(checked), tuple(faults), tuple(_unchecked(layout)))


def _unchecked(layout: Layout) -> list[str]:
    said = ["signatures and expiry: they were checked when a release came, and are not kept"]
    if not is_file(layout.trust_root):
        said.append("root: the store was given none, so no signature can be checked")
    for folder, why in (
        ("part", "downloads under way are checked when they are whole"),
        ("engines", "an engine is checked when it is loaded"),
    ):
        if there := names(layout.root / folder):
            said.append(f"{folder}: {len(there)} of them; {why}")
    return said
