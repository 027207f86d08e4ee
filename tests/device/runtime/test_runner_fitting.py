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
from toolchain.device.runtime.runner import Runner, load_fitting

NAME = "toy_chirps"


def test_bundles_that_fit_are_loaded_and_the_others_told(
    runner: Runner, fleet: Fleet, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.da3b"
    damaged.write_bytes(b"no bundle")
    paths = [fleet[name].bundle for name in ("first", "foreign", "wide", "next")]
    told: dict[Path, Exception] = {}
    load_fitting(runner, [damaged, *paths], refused=told.__setitem__)
    assert list(runner.domains) == [NAME]
    assert {path: type(err) for path, err in told.items()} == {
        damaged: BundleError,
        paths[1]: BackboneMismatchError,
        paths[2]: SessionLimitError,
        paths[3]: LoadedError,
    }


def test_not_one_bundle_that_fits_is_an_error(runner: Runner, fleet: Fleet) -> None:
    told: dict[Path, Exception] = {}
    with pytest.raises(RunError, match="expected a bundle that can be loaded"):
        load_fitting(runner, [fleet["foreign"].bundle], refused=told.__setitem__)
    assert len(told) == 1
