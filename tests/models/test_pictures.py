"""The drawn pictures: what training relies on."""

from __future__ import annotations

import numpy as np
from da3_models import RESNET20_CLASSES
from da3_models.pictures import (
    FIGURES,
    IGNORED,
    SEGMENTS,
    SHAPES,
    SIZE_PX,
    TASKS,
    draw,
    figure_segments,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
def test_the_same_generator_state_draws_the_same_pictures(seed: int, count: int) -> None:
    """Law: drawing is a function of the generator's state."""
    one, two = (draw(np.random.default_rng(seed), count) for _ in range(2))
    assert np.array_equal(one.pixels, two.pixels)
    assert np.array_equal(one.labels, two.labels)


def test_pixels_and_labels_have_the_promised_form() -> None:
    pictures = draw(np.random.default_rng(0), 600)
    assert pictures.pixels.shape == (600, SIZE_PX, SIZE_PX, 3)
    assert pictures.pixels.dtype == np.uint8
    for column, classes in enumerate(TASKS.values()):
        labels = set(pictures.labels[:, column].tolist()) - {IGNORED}
        assert labels == set(range(classes))
    strokes = pictures.labels[:, 0] >= len(SHAPES)
    assert (pictures.labels[strokes, 1] == IGNORED).all()
    assert IGNORED not in pictures.labels[:, [0, 2]]


def test_every_figure_can_be_seen() -> None:
    """Figure and background never share one lightness, so no picture is blank."""
    pictures = draw(np.random.default_rng(1), 600).pixels
    assert pictures.reshape(600, -1).std(1).min() > 4


def test_no_two_figures_are_the_same() -> None:
    segments = figure_segments()
    assert segments.shape == (len(FIGURES), SEGMENTS, 4)
    assert len({row.tobytes() for row in segments}) == len(FIGURES)
    assert np.abs(segments).max() <= 1.0 + 1e-6


def test_the_classifier_has_a_column_per_class() -> None:
    assert sum(TASKS.values()) == RESNET20_CLASSES
