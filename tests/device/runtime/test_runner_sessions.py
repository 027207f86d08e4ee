"""Sessions of the backbone: shared where slots allow it, priced where they do not; static ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.device.conftest import ALL
from tests.support.drawn import pixels, same, tensor
from tests.support.exported import Fleet
from toolchain.core.errors import SessionLimitError
from toolchain.device import Runner

LAWS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def test_domains_of_other_methods_classes_and_options_share_a_session(
    runner: Runner, fleet: Fleet
) -> None:
    for name in ("every", "first", "digits", "head"):
        domain = runner.load(fleet[name].bundle, name=name)
        assert domain.session == 0
    assert runner.facts.sessions == 1
    assert {n: len(d.classes) for n, d in runner.domains.items()}["digits"] == 10


@settings(LAWS, max_examples=15)
@given(st.permutations(["first", "digits", "head", "every"]))
def test_the_order_of_loads_does_not_matter(
    artefact: Path, fleet: Fleet, wide_runner: Runner, order: list[str]
) -> None:
    """Law: whatever was loaded before, a domain answers as it does elsewhere, up to rounding."""
    with Runner(artefact, sessions=3) as made:
        for name in order:
            made.load(fleet[name].bundle, name=name)
        for name in order:
            found, wanted = made.infer(tensor(3, 1), name), wide_runner.infer(tensor(3, 1), name)
            assert np.allclose(found.logits, wanted.logits, atol=1e-4)
            assert np.array_equal(found.gates, wanted.gates)


@pytest.mark.parametrize("name", ["da2", "wide", "every", "coarse"])
def test_a_domain_that_does_not_fit_says_what_a_session_costs(
    runner: Runner, artefact: Path, fleet: Fleet, name: str
) -> None:
    runner.load(fleet["first"].bundle)
    before = runner.infer(tensor(2)).logits
    told = r"does not fit the loaded session \(.*(block0|pool).*\); one more .* \d+ MiB and [\d.]+"
    with pytest.raises(SessionLimitError, match=told) as caught:
        runner.load(fleet[name].bundle)
    assert "sessions=2" in caught.value.fix
    assert runner.facts.sessions == 1
    assert same(runner.infer(tensor(2)).logits, before)
    with Runner(artefact, sessions=2) as made:
        made.load(fleet["first"].bundle)
        assert made.load(fleet[name].bundle).session == 1
        assert made.facts.sessions == 2
        made.unload(f"toy_{name}")
        assert made.facts.sessions == 1


def test_an_idle_session_goes_before_another_is_made(runner: Runner, fleet: Fleet) -> None:
    for name in ("first", "wide", "da2", "first"):
        domain = runner.load(fleet[name].bundle)
        assert runner.facts.sessions == 1
        runner.unload(domain.name)
        assert runner.facts.sessions == 1


def test_a_replaced_domains_session_is_not_inherited(runner: Runner, fleet: Fleet) -> None:
    """With slots filled it would be slower for ever; shared with a domain that stays, it is."""
    runner.load(fleet["first"].bundle, name="one")
    assert runner.load(fleet["head"].bundle, name="two").filled
    runner.unload("two")
    found = runner.replace(fleet["head"].bundle, name="one")
    assert (found.filled, found.session, runner.facts.sessions) == ((), 1, 1)


def test_a_domain_may_be_replaced_by_one_of_another_shape(runner: Runner, fleet: Fleet) -> None:
    """The session that it leaves makes room; where others stay on it, there is none."""
    runner.load(fleet["first"].bundle, name="one")
    assert runner.replace(fleet["wide"].bundle, name="one").session == 1
    assert runner.facts.sessions == 1
    runner.replace(fleet["first"].bundle, name="one")
    runner.load(fleet["next"].bundle, name="two")
    with pytest.raises(SessionLimitError):
        runner.replace(fleet["wide"].bundle, name="one")
    assert runner.facts.sessions == 1
    assert runner.domains["one"].classes == runner.domains["two"].classes


@pytest.mark.parametrize("name", ALL)
def test_static_answers_as_swap_through_the_same_call(
    artefact: Path, wide_runner: Runner, fleet: Fleet, name: str
) -> None:
    with Runner(artefact, flavour="static") as made:
        domain = made.load(fleet[name].bundle, name=name)
        found, wanted = made.infer(tensor(6)), wide_runner.infer(tensor(6), name)
        assert np.allclose(found.logits, wanted.logits, atol=1e-4)
        assert np.array_equal(found.gates, wanted.gates)
        assert found.gates.shape == (6, len(domain.gates))
        assert tuple(made.run(pixels(1)[0]).gates) == domain.gates


def test_static_holds_one_domain_and_replaces_it(artefact: Path, fleet: Fleet) -> None:
    with Runner(artefact, flavour="static") as made:
        made.load(fleet["first"].bundle)
        with pytest.raises(SessionLimitError, match="a static model is one domain's own"):
            made.load(fleet["digits"].bundle)
        second = made.replace(fleet["next"].bundle)
        assert made.run(pixels(1)[0]).release == second.release
        assert made.facts.sessions == 1
        made.load(fleet["next"].bundle, name="alias")
        assert made.facts.sessions == 1
