"""Drawn golden pictures: of every kind, the same for one seed, and nobody's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support import stripes
from toolchain.export.check import drawn

PREPROCESS = stripes.RECIPE.preprocess


def test_a_seed_gives_its_pictures_and_no_others() -> None:
    """Law: a picture depends on seed and index, not on how many are drawn."""
    few, many = drawn.draw(PREPROCESS, 12, 5), drawn.draw(PREPROCESS, 30, 5)
    assert few.shape == (12, stripes.SIDE, stripes.SIDE, 3)
    assert few.dtype == np.uint8
    assert np.array_equal(many[:12], few)
    assert len({p.tobytes() for p in (*many, *drawn.draw(PREPROCESS, 30, 6))}) == 60


def test_pictures_differ_in_light_and_texture() -> None:
    """From dark to bright and from smooth to noise: what brings gates into both states."""
    pictures = drawn.draw(PREPROCESS, 60, 0).astype(np.float64)
    light = pictures.mean(axis=(1, 2, 3))
    assert light.min() < 70
    assert light.max() > 180
    steps = np.abs(np.diff(pictures, axis=2)).mean(axis=(1, 2, 3))
    assert steps.min() * 10 < steps.max()


@pytest.mark.parametrize("crop", ["none", "center"])
@pytest.mark.parametrize("colour", ["RGB", "BGR", "L3"])
def test_they_are_what_the_preprocessing_makes_of_a_picture(crop: str, colour: str) -> None:
    p = replace(PREPROCESS, size=24, resize=24 if crop == "none" else 30, crop=crop, colour=colour)
    pictures = drawn.draw(p, 10, 1)
    assert pictures.shape == (10, 24, 24, 3)
    grey = (pictures == pictures[..., :1]).all()
    assert grey == (colour == "L3")
