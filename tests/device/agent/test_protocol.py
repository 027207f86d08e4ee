"""What a device says of itself: what it holds and runs, and nothing that is its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.fielded import SAMPLE, TOY, Fielded
from toolchain.device.agent.agent import Agent
from toolchain.device.agent.protocol import facts_of


def test_facts_are_those_of_the_store(field: Fielded) -> None:
    empty = facts_of(field.store, field.device.policy)
    assert (empty.generation, empty.units, empty.failed) == (0, (), {})
    Agent(field.device, supplies=Path("/nowhere")).once()
    facts = facts_of(field.store, field.device.policy)
    assert {one.unit: (one.counter, one.runs, one.signed) for one in facts.units} == {
        str(TOY): (1, True, True),
        str(SAMPLE): (1, True, True),
    }
    assert facts.floors == {str(TOY): 1, str(SAMPLE): 1}
    assert facts.reports == 1
    document = json.dumps(facts.document())
    assert json.loads(document)["schema"] == "da3.facts/1"
    assert str(field.store.path) not in document


def test_the_free_disk_is_the_stores_own(field: Fielded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device may work anywhere; nothing can be written into /proc."""
    monkeypatch.chdir("/proc")
    facts = facts_of(field.store, field.device.policy)
    assert facts.free_disk_bytes is not None
    assert facts.free_disk_bytes > 0
