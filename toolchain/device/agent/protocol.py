"""What a device says of itself: its facts, schema ``da3.facts/1``.

Rules of this file: values, and how they are read from a store; nothing is changed. Fleets know
devices by this file alone. Facts hold no picture, no key and no path of the device.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from toolchain import DISTRIBUTION
from toolchain.core.words import to_json
from toolchain.device.agent.policy import Policy
from toolchain.device.boards.machine import read_machine
from toolchain.device.store.state import State
from toolchain.device.store.store import Store

SCHEMA = "da3.facts/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFacts:
    """A release that the device holds; ``runs``: in the generation that is current."""

    unit: str
    counter: int
    digest: str
    state: str
    signed: bool
    runs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a device says of itself.

    ``generation``: number of the current one, 0 before the first. ``trial``: units that are tried.
    ``floors``: the lowest counter that may come, by unit. ``failed``: releases that were rolled
    back here and why, by unit. ``reports``: how many wait to be confirmed. Sizes are bytes.
    """

    agent: str
    python: str
    architecture: str
    board: str | None
    jetpack: str | None
    memory_bytes: int | None
    free_disk_bytes: int | None
    generation: int
    trial: tuple[str, ...]
    units: tuple[UnitFacts, ...]
    floors: Mapping[str, int]
    clock_floor: str
    failed: Mapping[str, str]
    reports: int
    repository: str | None
    unsigned: bool
    schema: str = SCHEMA

    def document(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        document: dict[str, Any] = to_json(self)
        return document


def facts_of(store: Store, policy: Policy) -> Facts:
    """Return what a device says of itself. Raises StoreDamagedError, StorageError."""
    state, machine = store.state(), read_machine()
    return Facts(
        agent=version(DISTRIBUTION),
        python=platform.python_version(),
        architecture=machine.architecture,
        board=machine.board,
        jetpack=machine.jetpack,
        memory_bytes=machine.memory_bytes,
        free_disk_bytes=shutil.disk_usage(store.path).free,
        generation=state.current,
        trial=() if state.trial is None else tuple(state.trial.units),
        units=_units(state),
        floors=dict(state.floors.releases),
        clock_floor=state.floors.clock,
        failed={one.unit: f"release {one.counter}: {one.reason}" for one in state.failed},
        reports=len(state.reports),
        repository=policy.repository,
        unsigned=policy.unsigned,
    )


def _units(state: State) -> tuple[UnitFacts, ...]:
    running = {(held.unit, held.digest) for held in state.running.values()}
    return tuple(
        UnitFacts(
            unit=held.unit,
            counter=held.counter,
            digest=held.digest,
            state=held.state,
            signed=held.signed,
            runs=(held.unit, held.digest) in running,
        )
        for held in state.held
    )
