"""Sessions of the backbone: shared where graphs are equal, priced where not; static ones."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from tests.device.conftest import ALL
from tests.support import altered
from tests.support.drawn import pixels, same, tensor
from tests.support.exported import Fleet
from toolchain.bundle import open_bundle
from toolchain.bundle.linkage import SWAP_IF
from toolchain.core.errors import SelftestError, SessionLimitError
from toolchain.device import Runner
from toolchain.device.runtime.backbone_session import BackboneSession


def test_domains_of_equal_options_share_a_session_whatever_their_classes(
    runner: Runner, fleet: Fleet
) -> None:
    alike = ("first", "digits", "bgr", "grey", "always")
    graphs = {open_bundle(fleet[name].bundle).blob(SWAP_IF.file) for name in alike}
    assert len(graphs) == 1
    for name in alike:
        assert runner.load(fleet[name].bundle, name=name).session == 0
    assert runner.facts.sessions == 1
    assert {n: len(d.classes) for n, d in runner.domains.items()}["digits"] == 10


@pytest.mark.parametrize("name", ["da2", "wide", "every", "coarse", "head"])
def test_a_domain_that_does_not_fit_says_what_a_session_costs(
    runner: Runner, artefact: Path, fleet: Fleet, name: str
) -> None:
    runner.load(fleet["first"].bundle)
    before = runner.infer(tensor(2)).logits
    message = (
        r"does not fit the loaded session \(.*(block0|pool).*\); one more .* \d+ MiB and [\d.]+"
    )
    with pytest.raises(SessionLimitError, match=message) as caught:
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


def test_a_session_goes_with_its_last_domain(runner: Runner, fleet: Fleet) -> None:
    """Law: the memory goes with the last domain of a graph, and not before."""
    runner.load(fleet["first"].bundle, name="one")
    runner.load(fleet["digits"].bundle, name="two")
    session = weakref.ref(runner._open.table["one"].session.backend)
    runner.unload("one")
    gc.collect()
    assert session() is not None
    assert runner.facts.sessions == 1
    runner.unload("two")
    gc.collect()
    assert session() is None
    assert runner.facts.sessions == 0
    assert runner.load(fleet["wide"].bundle).session == 1


def sessions_alive() -> int:
    gc.collect()
    return sum(type(one) is BackboneSession for one in gc.get_objects())


def test_the_session_of_a_domain_that_failed_is_freed(
    runner: Runner, fleet: Fleet, tmp_path: Path
) -> None:
    path = altered.with_graph(fleet["first"], tmp_path, altered.ignored_slot)
    before = sessions_alive()
    with pytest.raises(SelftestError) as caught:
        runner.load(path)
    # Its frames hold what they saw for as long as somebody holds the error.
    del caught
    assert sessions_alive() == before
    assert runner.facts.sessions == 0


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
        outcome, expected = made.infer(tensor(6)), wide_runner.infer(tensor(6), name)
        assert np.allclose(outcome.logits, expected.logits, atol=1e-4)
        assert np.array_equal(outcome.gates, expected.gates)
        assert outcome.gates.shape == (6, len(domain.gates))
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
