"""Golden data: the same bytes for the same cases, and hostile bytes refused."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save

from toolchain.bundle import golden as golden_file
from toolchain.bundle.golden import FORCE, MAX_CASES, PROBES, Golden, probe, read_golden, shifted
from toolchain.core.errors import VerificationError


def cases(count: int = 3, gates: int = 2, blocks: int = 2, seed: int = 0) -> Golden:
    draw = np.random.default_rng(seed)
    sites = tuple(f"block{i:02d}" for i in range(max(gates, blocks)))

    def floats(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return draw.normal(size=shape).astype(np.float32)

    return Golden(
        draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
        np.zeros((count, gates), np.float32),
        floats(count, 4),
        floats(count, gates),
        floats(count, blocks, PROBES),
        sites[:gates],
        sites[:blocks],
    )


def arrays(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    return dict(safetensors_load(data))


NAMES = json.dumps({"gates": ["block00", "block01"], "sites": ["block00", "block01"]})
GOOD = cases().to_bytes()


@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.integers(0, 99))
def test_cases_survive_writing(count: Any, gates: Any, blocks: Any, seed: int) -> None:
    """Law: read(write(g)) is g, and writing is deterministic."""
    written = cases(count, gates, blocks, seed)
    data = written.to_bytes()
    assert written.to_bytes() == data
    golden = read_golden(data, "golden")
    assert golden.to_bytes() == data
    assert (golden.gate_sites, golden.sites) == (written.gate_sites, written.sites)
    assert all(
        np.array_equal(getattr(golden, n), getattr(written, n))
        for n in ("pixels", "shifts", "logits", "gates", "probes")
    )


def spoiled(**changes: Any) -> bytes:
    tensors = arrays(GOOD)
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    return safetensors_save(tensors, metadata={"names": NAMES})


def with_names(text: str) -> bytes:
    return safetensors_save(arrays(GOOD), metadata={"names": text})


def holed(value: float) -> np.ndarray[Any, Any]:
    logits = arrays(GOOD)["logits"].copy()
    logits[1, 2] = value
    return logits


def bomb(side: int) -> bytes:
    """Attack: a small file whose cases, laid out, take gigabytes."""
    none = np.zeros((MAX_CASES, 0), np.float32)
    golden = Golden(
        np.zeros((1, side, side, 3), np.uint8),
        none,
        np.ones((MAX_CASES, 1), np.float32),
        none,
        np.zeros((MAX_CASES, 0, PROBES), np.float32),
        (),
        (),
        np.zeros(MAX_CASES, np.int32),
    )
    return golden.to_bytes()


HOSTILE = {
    "empty": (b"", "expected golden data"),
    "text": (b"golden", "expected golden data"),
    "cut": (GOOD[: len(GOOD) // 2], "expected golden data"),
    "longer": (GOOD + b"\0", "expected golden data"),
    "huge header": ((1 << 62).to_bytes(8, "little") + b"{}", "expected golden data"),
    "no names": (safetensors_save(arrays(GOOD)), "expected golden data"),
    "names no JSON": (with_names("["), "expected golden data"),
    "names a list": (with_names("[]"), "expected golden data"),
    "names without sites": (with_names('{"gates": []}'), "expected golden data"),
    "names null": (with_names('{"gates": null, "sites": []}'), "expected golden data"),
    "too few names": (with_names('{"gates": [], "sites": []}'), "expected 0 gates"),
    "missing tensor": (spoiled(gates=None), "expected the tensors"),
    "extra tensor": (spoiled(more=np.zeros(3, np.float32)), "expected the tensors"),
    "pixels float": (spoiled(pixels=np.zeros((3, 8, 8, 3), np.float32)), "pixels: expected U8"),
    "logits double": (spoiled(logits=np.zeros((3, 4))), "logits: expected F32"),
    "logits flat": (spoiled(logits=np.zeros(3, np.float32)), "of rank 2"),
    "NaN": (spoiled(logits=holed(np.nan)), "logits: expected finite"),
    "Inf": (spoiled(logits=holed(np.inf)), "logits: expected finite"),
    "other count": (spoiled(logits=np.zeros((2, 4), np.float32)), "cases in every tensor"),
    "no case": (cases(0).to_bytes(), "expected 1 to"),
    "other gates": (spoiled(gates=np.zeros((3, 1), np.float32)), "expected 2 gates"),
    "too many": (cases(MAX_CASES + 1, 0, 0).to_bytes(), "expected 1 to"),
    "other probes": (spoiled(probes=np.zeros((3, 2, PROBES - 1), np.float32)), "probes"),
    "pixels flat": (spoiled(pixels=np.zeros((3, 8, 4, 3), np.uint8)), "pixels: expected square"),
    "pixels grey": (spoiled(pixels=np.zeros((3, 8, 8, 1), np.uint8)), "pixels: expected square"),
    "picture beyond": (spoiled(picture=np.array([0, 1, 3], np.int32)), "picture: expected every"),
    "picture below": (spoiled(picture=np.array([0, 1, -1], np.int32)), "picture: expected every"),
    "picture unused": (spoiled(picture=np.array([0, 1, 1], np.int32)), "picture: expected every"),
    "one picture in thousands of cases": (bomb(side=600), "at most 1073741824 bytes"),
    "no classes": (spoiled(logits=np.zeros((3, 0), np.float32)), "logits"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_golden_data_is_refused(name: str) -> None:
    """One clear message that names the file, whatever is wrong with it."""
    data, message = HOSTILE[name]
    with pytest.raises(VerificationError, match=rf"golden\.safetensors: .*{message}") as caught:
        read_golden(data, "golden.safetensors")
    assert caught.value.fix


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 7))
def test_a_flipped_bit_never_breaks_the_reader(place: Any, bit: Any) -> None:
    """Law: the reader answers or refuses; no other error gets out."""
    data = bytearray(GOOD)
    data[place] ^= 1 << bit
    try:
        golden = read_golden(bytes(data), "golden")
    except VerificationError:
        return
    assert len(golden) == 3


def test_states_are_counted_per_gate() -> None:
    golden = cases()
    golden.gates[:] = [[1, -1], [0, -1], [-1, -1]]
    golden.shifts[2] = [-FORCE, 0]
    states = golden.states()
    assert (states["block00"].open, states["block00"].closed, states["block00"].forced) == (
        2,
        1,
        True,
    )
    assert (states["block01"].open, states["block01"].closed, states["block01"].forced) == (
        0,
        3,
        False,
    )
    assert golden.natural.tolist() == [True, True, False]
    assert len(golden.take([0, 2])) == 2


@given(st.integers(1, 4), st.integers(1, 40))
def test_probes_are_values_of_the_block_with_both_ends(count: Any, size: Any) -> None:
    """Law: a probe holds values of its own row, the first and the last among them."""
    block = np.arange(count * size, dtype=np.float32).reshape(count, size, 1, 1)
    probes = probe(block)
    assert probes.shape == (count, PROBES)
    assert (probes[:, 0] == block[:, 0, 0, 0]).all()
    assert (probes[:, -1] == block[:, -1, 0, 0]).all()
    for row, values in zip(block, probes, strict=True):
        assert np.isin(values, row).all()


def test_a_shift_moves_one_bias_and_nothing_else() -> None:
    slots = {
        "block00.gate.bias": np.array([0.5], np.float32),
        "block01.gate.bias": np.array([1.0], np.float32),
        "head.bias": np.ones(3, np.float32),
    }
    result = shifted(slots, ("block00", "block01"), np.array([2, 0], np.float32))
    assert result["block00.gate.bias"].tolist() == [2.5]
    assert result["block01.gate.bias"].tolist() == [1.0]
    assert result["block00.gate.bias"].dtype == np.float32
    assert slots["block00.gate.bias"].tolist() == [0.5]
    assert result["head.bias"] is slots["head.bias"]


def test_limits_are_small_enough_for_a_device() -> None:
    assert golden_file.MAX_CASES * 8 <= 1 << 16


def test_a_picture_of_several_cases_is_stored_once() -> None:
    """Law: cases read back as written, and a repeated picture costs no bytes of pixels."""
    once = cases(3)
    twice = once.take([0, 1, 1, 2, 0])
    assert len(arrays(twice.to_bytes())["pixels"]) == 3
    golden = read_golden(twice.to_bytes(), "golden")
    assert np.array_equal(golden.images(slice(None)), twice.images(slice(None)))


def test_reading_lays_no_picture_out() -> None:
    """Law: what is read takes the file's bytes; pictures are laid out for the rows asked for."""
    data = bomb(side=64)
    tracemalloc.start()
    golden = read_golden(data, "golden")
    assert len(golden) == MAX_CASES
    assert golden.images([0, MAX_CASES - 1]).shape == (2, 64, 64, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    laid_out = MAX_CASES * 64 * 64 * 3
    assert peak < laid_out / 10
    assert golden.take(slice(0, 5)).to_bytes() == golden.take([0, 1, 2, 3, 4]).to_bytes()
