"""Where the files of a unit lie on a site."""

from __future__ import annotations

import pytest

from toolchain.core.errors import UsageError
from toolchain.trust import Unit, blob_place, manifest_place, named_unit

CARS = Unit("domains", "cars")


def test_places_below_a_site() -> None:
    digest = "sha256:" + "ab" * 32
    assert manifest_place(CARS, "bundle.json", digest) == (
        f"targets/domains/cars/{'ab' * 32}.bundle.json"
    )
    assert blob_place(digest) == f"blobs/sha256/{'ab' * 32}"


def test_one_of_two_names_is_given() -> None:
    assert named_unit("cars", None) == CARS
    assert named_unit(None, "resnet20") == Unit("backbones", "resnet20")
    for both in ((None, None), ("cars", "resnet20")):
        with pytest.raises(UsageError, match="one domain or one backbone"):
            named_unit(*both)
