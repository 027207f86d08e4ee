"""What a linked graph is: one value with properties."""

from __future__ import annotations

import pytest

from toolchain.bundle import linkage
from toolchain.bundle.linkage import (
    FLAVOURS,
    FORMS,
    KITS,
    LINKAGES,
    LINKED_ROLES,
    SHIPPED,
    STAGED,
    STATIC_IF,
    STATIC_ROWS,
    SWAP_IF,
    SWAP_ROWS,
    Linkage,
    kit_linkage,
    linkage_of,
)


def test_written_names_stay() -> None:
    """Bundles, kits and engines in the field have them."""
    assert [one.stem for one in LINKAGES] == [
        "swap-if",
        "swap-rows",
        "static-if",
        "static-rows",
        "staged",
    ]
    assert [one.file for one in SHIPPED] == ["swap-if.onnx", "swap-rows.onnx", "static-if.onnx"]
    assert LINKED_ROLES == ("swap", "static")
    assert FLAVOURS == ("swap", "staged", "static")
    assert FORMS == ("if", "rows")


@pytest.mark.parametrize("one", LINKAGES, ids=lambda one: one.stem)
def test_a_linkage_is_found_by_its_stem(one: Linkage) -> None:
    """Law: linkage_of(x.stem) is x, and two linkages never share a stem."""
    assert linkage_of(one.stem) == one
    assert one.is_shipped is (one in SHIPPED)


def test_an_unknown_stem_is_no_linkage() -> None:
    assert linkage_of("swap") is None
    assert linkage_of("mask-if") is None


def test_properties() -> None:
    assert [one for one in LINKAGES if one.folds_domain] == [STATIC_IF, STATIC_ROWS]
    assert [one for one in LINKAGES if one.takes_one_picture] == [SWAP_IF, STATIC_IF]
    assert [one for one in LINKAGES if one.is_segmented] == [STAGED]
    assert {one.role for one in SHIPPED} == set(LINKED_ROLES)
    assert Linkage("swap", "rows") == SWAP_ROWS


def test_a_kit_writes_the_flavour_alone() -> None:
    assert tuple(kit_linkage(flavour) for flavour in FLAVOURS) == KITS


def test_every_linkage_has_a_name_of_its_own_in_the_module() -> None:
    named = [value for value in vars(linkage).values() if isinstance(value, Linkage)]
    assert sorted(one.stem for one in named) == sorted(one.stem for one in LINKAGES)
