"""The runner against a plain table: any order of loading, replacing, unloading and running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.support import altered
from tests.support.damage import with_slots
from tests.support.drawn import same, tensor
from tests.support.exported import Fleet
from toolchain.core.errors import LoadedError, SelftestError, UnknownNameError, UsageError
from toolchain.device import Outcome, Runner

NAMES = st.sampled_from(["red", "green", "blue"])
# Three names hold at most three graphs. "evil" has the slots of "first", and a graph that lies.
DOMAINS = ("first", "next", "digits", "head", "wide", "masked", "evil")
CHOSEN = st.sampled_from(DOMAINS)
# The last one is the white picture that the lie waits for.
IMAGES = np.concatenate([tensor(2, 7), np.full((1, 3, 12, 12), 9, np.float32)])


class Table(RuleBasedStateMachine):
    """``model`` says by name which bundle is loaded; the runner must agree after every step."""

    artefact: Path
    sources: dict[str, list[Path]]
    bad: list[Path]
    wanted: dict[str, Outcome]

    @initialize()
    def begin(self) -> None:
        self.runner = Runner(self.artefact, sessions=3)
        self.model: dict[str, str] = {}

    @rule(name=NAMES, chosen=CHOSEN, installed=st.booleans())
    def load(self, name: str, chosen: str, installed: bool) -> None:
        if name in self.model:
            with pytest.raises(LoadedError):
                self.runner.load(self.sources[chosen][installed], name=name)
        else:
            self.runner.load(self.sources[chosen][installed], name=name)
            self.model[name] = chosen

    @rule(name=NAMES, chosen=CHOSEN, installed=st.booleans())
    def replace(self, name: str, chosen: str, installed: bool) -> None:
        if name in self.model:
            self.runner.replace(self.sources[chosen][installed], name=name)
            self.model[name] = chosen
        else:
            with pytest.raises(UnknownNameError):
                self.runner.replace(self.sources[chosen][installed], name=name)

    @rule(name=NAMES, which=st.integers(0, 1))
    def replace_by_a_bundle_that_fails(self, name: str, which: int) -> None:
        with pytest.raises(SelftestError if name in self.model else UnknownNameError):
            self.runner.replace(self.bad[which], name=name)

    @rule(name=NAMES, which=st.integers(0, 1))
    def load_a_bundle_that_fails(self, name: str, which: int) -> None:
        with pytest.raises(LoadedError if name in self.model else SelftestError):
            self.runner.load(self.bad[which], name=name)

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        if name in self.model:
            self.runner.unload(name)
            del self.model[name]
        else:
            with pytest.raises(UnknownNameError):
                self.runner.unload(name)

    @rule(name=NAMES)
    def run(self, name: str) -> None:
        if name in self.model:
            self.agree(self.runner.infer(IMAGES, name), self.model[name])
        else:
            with pytest.raises(UnknownNameError):
                self.runner.infer(IMAGES, name)

    @rule()
    def run_without_a_name(self) -> None:
        if len(self.model) == 1:
            (chosen,) = self.model.values()
            self.agree(self.runner.infer(IMAGES), chosen)
        else:
            with pytest.raises(UsageError):
                self.runner.infer(IMAGES)

    @invariant()
    def the_table_is_the_models(self) -> None:
        if hasattr(self, "runner"):
            releases = {name: domain.release for name, domain in self.runner.domains.items()}
            assert releases == {name: self.wanted[c].release for name, c in self.model.items()}
            used = {domain.session for domain in self.runner.domains.values()}
            assert self.runner.facts.sessions == len(used)

    def agree(self, outcome: Outcome, chosen: str) -> None:
        expected = self.wanted[chosen]
        assert outcome.release == expected.release
        assert same(outcome.logits, expected.logits)
        assert same(outcome.gates, expected.gates)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()


def alone(artefact: Path, source: Path) -> Outcome:
    """What a domain answers on a session of its own."""
    with Runner(artefact) as made:
        made.load(source)
        return made.infer(IMAGES)


@pytest.fixture(scope="module")
def machine(artefact: Path, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("installed")

    def edit(slots: dict[str, Any]) -> None:
        slots["head.bias"][0] += 1

    made_by = folder / "made"
    made_by.mkdir()
    evil = altered.with_graph(fleet["first"], made_by, altered.lies_on_white)
    sources: dict[str, list[Path]] = {}
    for name in DOMAINS:
        source = evil if name == "evil" else fleet[name].bundle
        with Runner(artefact) as made:
            made.install(source, folder / name)
        sources[name] = [source, folder / name]

    class Made(Table):
        pass

    Made.artefact, Made.sources = artefact, sources
    wrong = folder / "wrong"
    wrong.mkdir()
    Made.bad = [
        with_slots(fleet["first"], folder, edit),
        altered.with_graph(fleet["first"], wrong, altered.ignored_slot),
    ]
    Made.wanted = {name: alone(artefact, sources[name][0]) for name in DOMAINS}
    return Made


def test_the_runner_agrees_with_a_plain_table(machine: Any) -> None:
    """Law: any interleaving; each domain answers as it does alone, to the last bit."""
    chosen = settings(max_examples=60, stateful_step_count=20, deadline=None)
    run_state_machine_as_test(machine, settings=chosen)
