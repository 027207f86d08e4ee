"""Any order of steps: floors never fall, what runs is installed, and few generations are kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.stored import NOW
from toolchain.core.errors import StoreError, TrialError, UsageError
from toolchain.core.units import BackboneId
from toolchain.device.store import steps
from toolchain.device.store.state import (
    COMMITTED,
    INSTALLED,
    TRYING,
    Held,
    State,
    StoredFile,
)

UNITS = st.sampled_from(["backbones/toy", "domains/cars", "domains/Käfer am Bach"])
CONTENTS = st.sampled_from(["1", "2", "3"])
FITS = BackboneId("toy", "sha256:" + "a" * 64, "sha256:" + "b" * 64)


def release(unit: str, counter: int, content: str, *, signed: bool) -> Held:
    digest = f"sha256:{content * 64}"
    files = (StoredFile("file", digest, 1),)
    return Held(
        unit=unit,
        counter=counter,
        digest=digest,
        state=INSTALLED,
        signed=signed,
        files=files,
        fits=FITS,
    )


class Steps(RuleBasedStateMachine):
    """States that follow from each other; the disk is not asked."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()

    def take(self, step: steps.Step) -> None:
        before, (self.state, _) = self.state, step
        # What is written can be read.
        assert State.from_json(self.state.to_json()) == self.state
        for unit, floor in before.floors.releases.items():
            assert self.state.floors.releases[unit] >= floor
        assert self.state.floors.clock >= before.floors.clock
        assert self.state.last >= before.last

    @rule(unit=UNITS, counter=st.integers(1, 6), content=CONTENTS, signed=st.booleans())
    def install(self, unit: str, counter: int, content: str, signed: bool) -> None:
        with suppress(StoreError):
            asked = release(unit, counter, content, signed=signed)
            self.take(steps.installed(self.state, asked, NOW))

    @rule(changes=st.dictionaries(UNITS, st.none() | CONTENTS, min_size=1))
    def activate(self, changes: dict[str, str | None]) -> None:
        digests = {u: None if c is None else f"sha256:{c * 64}" for u, c in changes.items()}
        with suppress(StoreError, UsageError):
            self.take(steps.trying(self.state, digests, self.state.last + 1, NOW))
            assert self.state.trial is not None

    @rule()
    def commit(self) -> None:
        with suppress(TrialError):
            self.take(steps.committed(self.state, NOW))
            for one in self.state.running.values():
                assert one.state == COMMITTED
                assert not one.signed or self.state.floors.releases[one.unit] >= one.counter

    @rule()
    def roll_back(self) -> None:
        with suppress(StoreError):
            before = self.state
            self.take(steps.rolled_back(self.state, "a test", NOW))
            assert self.state.floors == before.floors

    @rule()
    def abandon(self) -> None:
        with suppress(TrialError):
            self.take(steps.abandoned(self.state, NOW))

    @rule()
    def start(self) -> None:
        with suppress(TrialError):
            self.take(steps.started(self.state, NOW))

    @rule(unit=UNITS, content=CONTENTS)
    def damage(self, unit: str, content: str) -> None:
        damaged = {(unit, f"sha256:{content * 64}"): "a byte"}
        running = {(u, one.digest) for u, one in self.state.running.items()}
        if running & set(damaged):
            self.take(steps.fallen(self.state, damaged, NOW))
            assert self.state.trial is None
            assert not set(damaged) & {(one.unit, one.digest) for one in self.state.held}

    @rule()
    def collect(self) -> None:
        before = self.state.running
        self.take(steps.forgotten(self.state, NOW))
        assert self.state.running == before

    @invariant()
    def trials_and_generations_agree(self) -> None:
        trying = [one for one in self.state.held if one.state == TRYING]
        assert (self.state.trial is not None) or not trying
        assert len(self.state.generations) <= 3
        backbones = {u for u in self.state.running if u.startswith("backbones/")}
        assert backbones or not self.state.running


Steps.TestCase.settings = settings(max_examples=25, stateful_step_count=30)
TestSteps = Steps.TestCase


def test_of_many_reports_the_oldest_go() -> None:
    state = State()
    for number in range(260):
        state, _ = steps.reported(state, {"number": number}, NOW)
    assert [report.about["number"] for report in state.reports] == list(range(4, 260))
    assert State.from_json(state.to_json()) == state


def test_of_many_failed_releases_the_oldest_go() -> None:
    state = State()
    for counter in range(1, 71):
        tried = replace(release("backbones/toy", counter, "1", signed=True), digest=digest(counter))
        state, _ = steps.installed(state, tried, NOW)
        state, _ = steps.trying(state, {tried.unit: tried.digest}, counter, NOW)
        state, _ = steps.rolled_back(state, "a test", NOW)
        state, _ = steps.forgotten(state, NOW)
    assert [failed.counter for failed in state.failed] == list(range(7, 71))
    assert State.from_json(state.to_json()) == state


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def test_words_of_a_report_become_one_printable_line() -> None:
    """Law: whatever an error says, the state that keeps it can be read again."""
    said = "2 faults\n  files: \x1b[2J" + "x" * 5000
    state, _ = steps.reported(State(), {"reason": said, "starts": 3}, NOW)
    (report,) = state.reports
    assert report.about["starts"] == 3
    reason = report.about["reason"]
    assert isinstance(reason, str)
    assert reason.startswith("2 faults   files:  [2Jx")
    assert reason.isprintable()
    assert len(reason) == 300
