"""The interleaved timer and its statistics."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.timing import (
    CLOCK,
    WALL,
    Call,
    clock_of,
    interleaved,
    percentile95,
    rebuilt,
    timing,
)

SECONDS = st.floats(1e-6, 10, allow_nan=False)
SERIES = st.lists(SECONDS, min_size=1, max_size=40)


def test_interleaved_compares_with_the_first_contender() -> None:
    timings = interleaved({"a": lambda: sum(range(200)), "b": lambda: sum(range(2000))}, rounds=3)
    assert timings["a"].ratio == 1.0
    assert timings["a"].difference_ms == 0.0
    assert timings["a"].rounds == timings["b"].rounds == 3
    low, high = timings["b"].ratio_quartiles
    assert low <= timings["b"].ratio <= high


def test_every_contender_is_called_in_every_round() -> None:
    calls: dict[str, int] = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1

    lines: list[str] = []
    contenders = {name: lambda name=name: count(name) for name in calls}
    interleaved(contenders, rounds=4, notify=lines.append)
    assert lines == [f"round {turn} of 4" for turn in range(1, 5)]
    assert min(calls.values()) >= 2 + 4


def test_contenders_are_built_anew() -> None:
    built: list[int] = []

    def build() -> dict[str, Call]:
        built.append(len(built))
        return {"a": lambda: sum(range(200)), "b": lambda: sum(range(2000))}

    timings = rebuilt(build, times=3, rounds=6)
    assert built == [0, 1, 2]
    assert timings["a"].rounds == timings["b"].rounds == 6
    assert timings["a"].noise_ms == timings["a"].difference_ms == 0.0
    assert timings["b"].noise_ms > 0


def test_threads_choose_the_clock() -> None:
    assert clock_of(1) == CLOCK
    assert clock_of(2) == WALL


@given(SERIES)
def test_a_contender_against_itself_is_no_different(own: list[float]) -> None:
    figures = timing(own, own)
    assert figures.ratio == 1.0
    assert figures.difference_ms == figures.noise_ms == 0.0
    assert figures.median_ms == pytest.approx(1e3 * median(own))


@given(SERIES)
def test_quartiles_and_p95_lie_where_they_should(own: list[float]) -> None:
    figures = timing(own, own)
    low, high = figures.quartiles_ms
    slack = 1e-9 * max(own)
    assert 1e3 * min(own) - slack <= low <= figures.median_ms + slack
    assert figures.median_ms <= high + slack
    assert high <= figures.p95_ms + 1e3 * slack
    assert percentile95(own) <= max(own) + slack


@given(SERIES, st.floats(0.1, 10))
def test_ratio_and_difference_follow_the_scale(own: list[float], factor: float) -> None:
    figures = timing([factor * value for value in own], own)
    assert figures.ratio == pytest.approx(factor)
    assert figures.difference_ms == pytest.approx(1e3 * (factor - 1) * median(own), abs=1e-6)


@given(st.lists(SECONDS, min_size=4, max_size=20))
def test_more_rounds_of_the_same_have_less_noise(own: list[float]) -> None:
    base = [1e-3] * len(own)
    few, many = timing(own, base), timing(own * 9, base * 9)
    assert many.noise_ms <= few.noise_ms + 1e-9
