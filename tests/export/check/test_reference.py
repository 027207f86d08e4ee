"""Choosing golden cases: deterministic, every gate in both states, unclear pictures left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import stripes, toys
from toolchain.bundle.golden import FORCE, Golden
from toolchain.export.check import drawn, reference
from toolchain.export.check.reference import MARGIN, choose, observe
from toolchain.pictures.preprocess import normalise
from toolchain.training.adapt.attached import AttachedModel, weights_digest

PREPROCESS = stripes.RECIPE.preprocess
SPLIT = stripes.split("test", 60, 1)


def model(seed: int = 0, method: str = "da3") -> AttachedModel:
    """Gates that half of the pictures find open."""
    network = toys.scrambled(stripes.model(method=method), seed)
    pixels, _ = SPLIT.batch(range(len(SPLIT)))
    return toys.balanced(network, torch.from_numpy(normalise(PREPROCESS, pixels)))


def shown(golden: Golden) -> Any:
    return golden.images(slice(None))


def biased(amount: float, site: str = "block00") -> AttachedModel:
    network = model()
    with torch.no_grad():
        network.domain.get_parameter(f"{site}.gate.bias").add_(amount)
    return network


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 50), st.integers(4, 12))
def test_both_states_of_every_gate_are_covered(seed: int, count: Any) -> None:
    """Law: every gate is open in a case and closed in another, natural or forced."""
    chosen = choose(model(seed), SPLIT, PREPROCESS, count=count)
    states = chosen.golden.states().values()
    assert all(s.open and s.closed for s in states)
    assert len(chosen.golden) <= count + 2
    natural = chosen.golden.take(chosen.golden.natural)
    assert len(natural) <= count
    assert (np.abs(natural.gates) >= MARGIN).all()
    assert (np.abs(chosen.others.gates) >= MARGIN).all()


def test_choosing_is_deterministic() -> None:
    """Law: the same model and data give the same cases, byte for byte."""
    first, second = (choose(model(), SPLIT, PREPROCESS, count=5) for _ in range(2))
    assert first.golden.to_bytes() == second.golden.to_bytes()
    assert first.others.to_bytes() == second.others.to_bytes()


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 50), st.integers(4, 12))
def test_drawn_cases_cover_both_states_and_hold_no_picture_of_the_data(
    seed: int, count: Any
) -> None:
    """Law: as above, and every golden picture is one that the seed draws."""
    chosen = choose(model(seed), SPLIT, PREPROCESS, count=count, seed=seed)
    golden = chosen.golden
    assert chosen.drawn
    assert all(s.open and s.closed for s in golden.states().values())
    assert 0 < int(golden.natural.sum()) <= count
    assert (np.abs(golden.gates) >= MARGIN).all()
    own = {p.tobytes() for p in drawn.draw(PREPROCESS, chosen.searched, seed)}
    assert {p.tobytes() for p in shown(golden)} <= own
    again = choose(model(seed), SPLIT, PREPROCESS, count=count, seed=seed)
    assert again.golden.to_bytes() == golden.to_bytes()


def test_drawn_pictures_reach_states_without_force() -> None:
    """The toy's gates are balanced on the data, and drawn pictures find them open and closed."""
    chosen = choose(model(), SPLIT, PREPROCESS, count=8, seed=0)
    assert chosen.golden.natural.all()
    assert not any(state.forced for state in chosen.golden.states().values())


def test_beside_drawn_cases_the_data_are_compared_as_well() -> None:
    """What never leaves the machine may be anybody's: parity looks at real pictures too."""
    chosen = choose(model(), SPLIT, PREPROCESS, count=5, seed=0, batch=16)
    assert len(chosen.golden.take(chosen.golden.natural)) + len(chosen.others) == 16
    data = {p.tobytes() for p in SPLIT.pictures}
    assert {p.tobytes() for p in shown(chosen.others)} <= data
    assert (np.abs(chosen.others.gates) >= MARGIN).all()


def test_drawn_cases_with_a_level_best_class_come_last() -> None:
    """Rounding may decide between two classes that are level, so others are taken first."""
    network = model()
    golden = choose(network, SPLIT, PREPROCESS, count=6, seed=3).golden
    every = observe(network, PREPROCESS, drawn.draw(PREPROCESS, 200, 3))

    def lead(logits: Any) -> Any:
        ordered = np.sort(logits, axis=1)
        return ordered[:, -1] - ordered[:, -2]

    assert np.median(lead(golden.logits)) >= np.median(lead(every.logits))


def test_enough_other_cases_fill_a_batch() -> None:
    chosen = choose(model(), SPLIT, PREPROCESS, count=5, batch=16)
    assert len(chosen.golden.take(chosen.golden.natural)) + len(chosen.others) == 16
    own = {p.tobytes() for p in shown(chosen.golden)}
    assert not own & {p.tobytes() for p in shown(chosen.others)}


@pytest.mark.parametrize(("amount", "sign"), [(500.0, -1), (-500.0, 1)])
def test_a_state_that_data_never_reaches_is_forced(amount: Any, sign: Any) -> None:
    """The gate's bias is shifted in one more case, that gate's alone, and it is marked."""
    chosen = choose(biased(amount), SPLIT, PREPROCESS, count=5)
    golden = chosen.golden
    (row,) = np.flatnonzero(~golden.natural)
    assert golden.shifts[row].tolist() == [sign * FORCE, 0]
    states = golden.states()
    assert states["block00"].forced
    assert not states["block02"].forced
    assert all(s.open and s.closed for s in states.values())


def test_unclear_pictures_are_left_out_and_counted() -> None:
    """A picture whose gate stands on its threshold would turn by rounding."""
    network = model()
    pixels, _ = SPLIT.batch(range(len(SPLIT)))
    with torch.no_grad():
        trace = network.trace(torch.from_numpy(normalise(PREPROCESS, pixels)))
        network.domain.get_parameter("block00.gate.bias").sub_(trace.gates["block00"][7, 0])
    chosen = choose(network, SPLIT, PREPROCESS, count=6)
    assert chosen.ambiguous >= 1
    pictures = {p.tobytes() for g in (chosen.golden, chosen.others) for p in shown(g)}
    assert pixels[7].tobytes() not in pictures
    assert chosen.searched == len(SPLIT)


def test_the_search_is_bounded_by_cost_not_by_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SEARCH_FLOPS", 1)
    assert choose(model(), SPLIT, PREPROCESS, count=4).searched == reference.SEARCH_RANGE[0]


@pytest.mark.parametrize("method", ["da2", "head"])
def test_a_domain_without_gates_has_natural_cases_only(method: str) -> None:
    network = toys.scrambled(stripes.model(method=method))
    chosen = choose(network, SPLIT, PREPROCESS, count=4)
    assert chosen.golden.natural.all()
    assert chosen.golden.gates.shape == (4, 0)
    assert chosen.golden.probes.shape[1] == len(network.sites)
    assert chosen.ambiguous == 0


def test_observing_changes_nothing_of_the_model() -> None:
    """Law: the model's tensors are the same before and after, forced or not."""
    network = model()
    before = {n: t.clone() for n, t in network.domain.state_dict().items()}
    digest = weights_digest(network)
    pixels, _ = SPLIT.batch([0, 1])
    plain = observe(network, PREPROCESS, pixels)
    forced = observe(network, PREPROCESS, pixels, np.array([FORCE, -FORCE], np.float32))
    assert (forced.gates[:, 0] >= 0).all()
    assert (forced.gates[:, 1] < 0).all()
    after = network.domain.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert weights_digest(network) == digest
    assert observe(network, PREPROCESS, pixels).to_bytes() == plain.to_bytes()


def test_observations_are_pytorchs_own_answers() -> None:
    network = model()
    pixels, _ = SPLIT.batch([3, 4, 5])
    golden = observe(network, PREPROCESS, pixels)
    with torch.no_grad():
        trace = network.trace(torch.from_numpy(normalise(PREPROCESS, pixels)))
    assert trace.logits is not None
    assert np.array_equal(golden.logits, trace.logits)
    assert np.array_equal(golden.gates, torch.cat(list(trace.gates.values()), 1))
    assert golden.gate_sites == tuple(trace.gates)
    assert golden.sites == tuple(trace.results)
