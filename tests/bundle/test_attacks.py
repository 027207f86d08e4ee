"""Every hostile bundle is refused for its own reason and leaves nothing behind."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import attacks_archive, attacks_manifest
from toolchain.bundle import open_bundle, read_bundle, unpack
from toolchain.core.errors import BundleError

ATTACKS = attacks_archive.ATTACKS | attacks_manifest.ATTACKS


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused_for_its_own_reason(name: str, good: bytes) -> None:
    attack = ATTACKS[name]
    bad = attack.make(good)
    assert bad != good
    with pytest.raises(BundleError) as caught:
        read_bundle(bad)
    assert attack.says in caught.value.message
    assert caught.value.fix
    assert caught.value.exit_code == 4
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize("name", ["path_traversal_member", "file_name_with_a_path", "slot_extra"])
def test_nothing_of_a_refused_bundle_is_written(name: str, good: bytes, tmp_path: Path) -> None:
    bad = tmp_path / "bad.da3b"
    bad.write_bytes(ATTACKS[name].make(good))
    with pytest.raises(BundleError, match=r"bad\.da3b"):
        unpack(bad, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.da3b"]


def test_the_good_bundle_is_read(good: bytes) -> None:
    """Without this every refusal above could be that of a reader that refuses everything."""
    assert read_bundle(good).manifest.domain == "cars"


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def assert_refused(data: bytes, what: str) -> None:
    try:
        read_bundle(data)
    except BundleError:
        return
    pytest.fail(f"accepted: {what}")


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.full)])
def test_every_flipped_bit_is_found(good: bytes, bits: int) -> None:
    """Law: no bundle can be changed in one bit; headers, contents, padding and end included.

    One bit of each byte is drawn; all of them are tried at full size.
    """
    drawn = random.Random(0)
    for byte in range(len(good)):
        for bit in drawn.sample(range(8), bits):
            assert_refused(flipped(good, 8 * byte + bit), f"bit {bit} of byte {byte}")


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_spliced_bundles_are_refused(data: st.DataObject, good: bytes) -> None:
    """Law: no bundle stays one when a piece of it is put over, into or out of another place."""
    at = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(at, min(len(good), at + 2048)))
    start = data.draw(st.integers(0, len(good)))
    piece = good[start : start + data.draw(st.integers(0, 2048))]
    changed = good[:at] + piece + good[end:]
    if changed != good:
        assert_refused(changed, f"{len(piece)} bytes from {start} in place of {at}:{end}")


def test_truncation_is_found_everywhere(good: bytes) -> None:
    """Law: no proper prefix of a bundle is a bundle."""
    cuts = {*range(0, len(good), 512), *random.Random(5).sample(range(len(good)), 1000)}
    for cut in sorted(cuts):
        assert_refused(good[:cut], f"{cut} bytes")


def test_deep_nesting_does_not_reach_the_recursion_limit(good: bytes, tmp_path: Path) -> None:
    """The depth is counted before the parser runs, so a deep stack changes nothing."""
    path = tmp_path / "deep.da3b"
    path.write_bytes(ATTACKS["only_brackets"].make(good))

    def at_depth(levels: int) -> None:
        if levels:
            at_depth(levels - 1)
            return
        with pytest.raises(BundleError, match="nesting"):
            open_bundle(path)

    at_depth(sys.getrecursionlimit() // 2)
