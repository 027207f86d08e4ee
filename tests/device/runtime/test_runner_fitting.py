"""A folder of bundles on one runner: those that fit are loaded, and the others told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.exported import Fleet
from toolchain.core.errors import (
    BackboneMismatchError,
    BundleError,
    LoadedError,
    RunError,
    SessionLimitError,
)
from toolchain.device.runtime.backbone_session import Cost
from toolchain.device.runtime.runner import Runner, load_fitting
from toolchain.device.store.dist import survey

NAME = "toy_chirps"


def test_bundles_that_fit_are_loaded_and_the_others_told(
    runner: Runner, fleet: Fleet, tmp_path: Path
) -> None:
    """One that changes the backbone stands first, and takes no session from those that share."""
    damaged = tmp_path / "damaged.da3b"
    damaged.write_bytes(b"no bundle")
    names = ("tuned", "foreign", "wide", "first", "next", "digits")
    paths = [fleet[name].bundle for name in names]
    errors: dict[Path, Exception] = {}
    made: dict[Path, Cost] = {}
    load_fitting(
        runner, survey([damaged, *paths]), made=made.__setitem__, refused=errors.__setitem__
    )
    assert list(runner.domains) == [NAME, "toy_digits"]
    assert {path: type(err) for path, err in errors.items()} == {
        damaged: BundleError,
        paths[1]: BackboneMismatchError,
        paths[2]: SessionLimitError,
        paths[4]: LoadedError,
        paths[0]: SessionLimitError,
    }
    assert made == {}
    for path in (paths[2], paths[0]):  # each needs one of its own, beside the one that is there
        err = errors[path]
        assert isinstance(err, SessionLimitError)
        assert err.fix.startswith("allow it with sessions=3, or ")


def test_a_further_session_is_told_with_what_it_took(artefact: Path, fleet: Fleet) -> None:
    names = ("masked", "head", "digits", "grey")
    made: dict[Path, Cost] = {}
    errors: dict[Path, Exception] = {}
    with Runner(artefact, sessions=3) as runner:
        surveyed = survey([fleet[name].bundle for name in names])
        load_fitting(runner, surveyed, made=made.__setitem__, refused=errors.__setitem__)
        assert errors == {}
        assert list(runner.domains) == ["toy_digits", "toy_grey", "toy_head", "toy_masked"]
        assert [path.stem for path in made] == ["toy_head", "toy_masked"]
        assert all(cost.seconds > 0 for cost in made.values())
        assert runner.cost("toy_digits") == runner.cost("toy_grey")


def test_not_one_bundle_that_fits_is_an_error(runner: Runner, fleet: Fleet) -> None:
    errors: dict[Path, Exception] = {}
    with pytest.raises(RunError, match="expected a bundle that can be loaded"):
        load_fitting(
            runner,
            survey([fleet["foreign"].bundle]),
            made=lambda *_: None,
            refused=errors.__setitem__,
        )
    assert len(errors) == 1
