"""Patches: what differs and nothing else comes back, and hostile ones are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from tests.support.samples import MANIFEST, PAYLOADS, edited
from toolchain.bundle import Patch, Payload, apply_patch, make_patch, pack, read_bundle
from toolchain.bundle import patch as patch_file
from toolchain.bundle.patch import PATCH_NAME, SCALED_WITHIN, check_patch
from toolchain.core.errors import BundleError, GraphError, UsageError
from toolchain.core.safetensors import LIMIT_HEADER_BYTES

Tensors = dict[str, npt.NDArray[Any]]


def drawn(seed: int = 0) -> Tensors:
    """Weights as a backbone has them: kernels, biases, one folded tensor, one of integers."""
    draw = np.random.default_rng(seed)
    shapes = {"backbone.stem.weight+bn": (3, 2, 3, 3), "backbone.stem.bias+bn": (3,), "c7": (4, 5)}
    floats = {name: draw.normal(size=shape) for name, shape in shapes.items()}
    return {
        **{name: array.astype(np.float32) for name, array in floats.items()},
        "c9": np.arange(200, dtype=np.int64),
    }


KERNEL, BIAS = "backbone.stem.weight+bn", "backbone.stem.bias+bn"
BASE = drawn()
BYTES = save(BASE)


def changed(**values: npt.NDArray[Any]) -> bytes:
    names = {"kernel": KERNEL, "bias": BIAS, "matrix": "c7", "integers": "c9"}
    return save({**BASE, **{names[name]: array for name, array in values.items()}})


def made(weights: bytes) -> patch_file.Patched:
    patch = make_patch(BYTES, weights)
    assert patch is not None
    return patch


MASKED = BASE[KERNEL] * (np.arange(54).reshape(3, 2, 3, 3) % 3 > 0)
GOOD = made(changed(kernel=MASKED.astype(np.float32), bias=BASE[BIAS] + 1))


# Laws


@given(st.integers(0, 99), st.sets(st.sampled_from([KERNEL, BIAS, "c7"])), st.booleans())
def test_what_differs_comes_back(seed: Any, names: set[str], masks: bool) -> None:
    """Law: apply(base, make(base, changed)) is changed, and only what differs is carried."""
    draw = np.random.default_rng(seed)
    own: Tensors = {n: draw.normal(size=BASE[n].shape).astype(np.float32) for n in names}
    if masks:
        own = {n: BASE[n] * (keep > 0) for n, keep in own.items()}
    weights = save({**BASE, **own})
    patch = make_patch(BYTES, weights)
    differing = {n for n, array in own.items() if not np.array_equal(array, BASE[n])}
    if patch is None:
        assert not differing
        return
    assert set(load(patch.data)) == differing
    assert patch.about.of == 3
    assert patch.about.kind == "masked" if masks else patch.about.tensors == len(differing)
    assert make_patch(BYTES, weights) == patch
    applied = apply_patch(BYTES, patch.about, patch.data)
    assert applied == patch.weights
    back, expected = load(applied), load(weights)
    assert all(np.array_equal(back[name], expected[name]) for name in expected)


def folded(kernel: npt.NDArray[Any], norm: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A kernel [O, ...] with a norm's scale [O] folded in, as export does: rounded once."""
    wide: npt.NDArray[np.float64] = kernel * norm.reshape(-1, *(1,) * (kernel.ndim - 1))
    return wide.astype(np.float32)


shapes = st.sampled_from([(3, 2, 3, 3), (5, 1, 3, 3), (4, 9), (2, 8, 1, 1), (1, 40)])
scales = st.floats(-1e3, 1e3, width=32)


@given(st.data(), shapes, st.integers(0, 99))
def test_a_kernel_with_another_norm_costs_a_float_per_channel(
    data: Any, shape: tuple[int, ...], seed: Any
) -> None:
    """Law: two norms folded into one kernel differ by factors, within what folding rounds."""
    kernel = np.random.default_rng(seed).normal(size=shape)
    first, second = (
        np.array(data.draw(st.lists(scales, min_size=shape[0], max_size=shape[0])))
        for _ in range(2)
    )
    first[np.abs(first) < 1e-3] = 1.0
    second[np.abs(second) < 1e-3] = 0.0
    base, expected = folded(kernel, first), folded(kernel, second)
    patch = make_patch(save({"k": base}), save({"k": expected}))
    if patch is None:
        assert np.array_equal(base, expected)
        return
    (factor,) = load(patch.data).values()
    assert factor.nbytes <= 4 * shape[0]
    assert patch.about.scaled == (factor.dtype == np.float32)
    got = load(apply_patch(save({"k": base}), patch.about, patch.data))["k"]
    rows = (got.reshape(shape[0], -1), expected.reshape(shape[0], -1))
    assert (np.abs(rows[0] - rows[1]).max(1) <= SCALED_WITHIN * np.abs(rows[1]).max(1)).all()


def test_the_scaled_tensor_is_the_product_and_no_other() -> None:
    factors = np.array([0.3, -1.7, 0], np.float32)
    patch = made(changed(kernel=folded(BASE[KERNEL].astype(np.float64), factors)))
    (factor,) = load(patch.data).values()
    assert (factor.dtype.name, factor.shape) == ("float32", (3,))
    np.testing.assert_allclose(factor, factors, rtol=1e-6)
    about = patch.about
    assert (about.kind, about.tensors, about.masks, about.scaled) == ("tensors", 1, 0, 1)
    product = BASE[KERNEL] * factor[:, None, None, None]
    assert np.array_equal(load(patch.weights)[KERNEL], product)
    again = make_patch(BYTES, patch.weights)
    assert again is not None
    assert again.weights == patch.weights, "the product is its own patch"


def test_one_element_beside_its_channel_needs_the_whole_tensor() -> None:
    """A channel of zeros cannot be scaled to anything else; nor is an element left behind."""
    base = {"k": drawn(3)[KERNEL]}
    base["k"][1] = 0
    twice = base["k"] * np.float32(2)
    for value, scaled in ((0.0, 1), (1e-9, 0)):
        expected = twice.copy()
        expected[1, 0, 0, 0] = value
        patch = make_patch(save(base), save({"k": expected}))
        assert patch is not None
        assert patch.about.scaled == scaled
        assert np.array_equal(load(patch.weights)["k"], expected)
    for off, scaled in ((SCALED_WITHIN / 4, 1), (SCALED_WITHIN * 4, 0)):
        expected = twice.copy()
        expected[0, 0, 0, 0] += off * np.abs(twice[0]).max()
        patch = make_patch(save(base), save({"k": expected}))
        assert patch is not None
        assert patch.about.scaled == scaled


def test_the_fewest_bytes_win_and_the_exact_form_among_equals() -> None:
    """A mask of whole channels is one of factors too; [O, 1] has as many bytes as its factors."""
    for shape, want in (((4, 80), 1), ((4, 32), 0), ((4, 8), 0)):
        base = np.ones(shape, np.float32)
        off = base * (np.arange(4) % 2)[:, None].astype(np.float32)
        patch = make_patch(save({"k": base}), save({"k": off}))
        assert patch is not None
        assert (patch.about.scaled, patch.about.masks) == (want, 1 - want)
    column = np.ones((4, 1), np.float32)
    patch = make_patch(save({"k": column}), save({"k": column * np.float32(0.3)}))
    assert patch is not None
    assert patch.about.scaled == 0


def test_a_base_that_is_not_finite_is_never_scaled() -> None:
    base = np.array([[1, np.inf], [1, 2]], np.float32)
    patch = make_patch(save({"k": base}), save({"k": np.array([[2, 1], [2, 4]], np.float32)}))
    assert patch is not None
    assert patch.about.scaled == 0


def test_a_mask_costs_a_bit_per_weight_and_a_changed_tensor_its_own_size() -> None:
    forms = {n: (a.dtype.name, a.shape) for n, a in load(GOOD.data).items()}
    assert forms == {KERNEL: ("uint8", (7,)), BIAS: ("float32", (3,))}
    about = GOOD.about
    assert (about.kind, about.tensors, about.masks, about.scaled) == ("tensors", 2, 1, 0)
    assert about.of == 3


def test_a_whole_model_says_so() -> None:
    own = {name: BASE[name] + 1 for name in (KERNEL, BIAS, "c7")}
    assert made(save({**BASE, **own})).about.kind == "whole"


def test_nothing_is_carried_where_only_the_sign_of_a_zero_differs() -> None:
    base = save({"a": np.zeros(4, np.float32)})
    assert make_patch(base, base) is None
    assert make_patch(base, save({"a": -np.zeros(4, np.float32)})) is None


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (save({n: a for n, a in BASE.items() if n != "c7"}), "'c7'"),
        (save({**BASE, "more": BASE["c7"]}), "'more'"),
        (changed(matrix=BASE["c7"].T.copy()), "'c7'"),
        (changed(matrix=BASE["c7"].astype(np.float64)), "'c7'"),
        (changed(integers=BASE["c9"] + 1), "c9: expected float32"),
    ],
)
def test_other_tensors_than_the_bases_are_no_patch(weights: bytes, told: str) -> None:
    with pytest.raises(GraphError, match=told):
        make_patch(BYTES, weights)


def test_a_patch_that_no_bundle_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_file, "LIMIT_BYTES", 100)
    with pytest.raises(UsageError, match="expected at most 100") as caught:
        make_patch(BYTES, changed(kernel=BASE[KERNEL] + 1))
    assert "da3" in caught.value.fix


# Attacks


def with_tensors(**values: npt.NDArray[Any] | None) -> bytes:
    names = {"kernel": KERNEL, "bias": BIAS, "matrix": "c7", "integers": "c9", "strange": "strange"}
    tensors: dict[str, Any] = dict(load(GOOD.data))
    tensors.update({names[name]: array for name, array in values.items()})
    return save({name: array for name, array in tensors.items() if array is not None})


def raw(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def holed(value: float) -> npt.NDArray[np.float32]:
    return np.array([0, value, 0], np.float32)


MASK = load(GOOD.data)[KERNEL]
TWICE = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
# Refused when a bundle is opened: no backbone is needed to see it.
ALONE = {
    "empty_file": (b"", "expected a safetensors file"),
    "truncated": (GOOD.data[:-1], "expected a safetensors file"),
    "bytes_behind_the_end": (GOOD.data + b"\0", "1 bytes that no tensor has"),
    "huge_header": ((1 << 62).to_bytes(8, "little") + b"{}", "a header of"),
    "header_beyond_the_limit": (raw(b" " * (LIMIT_HEADER_BYTES + 1)), "a header of"),
    "name_twice": (raw(TWICE + TWICE[1:-1] + b"}"), "the key 'a' twice"),
    "pickle": (b"\x80\x04cos\nsystem\n.", "expected a safetensors file"),
    "nan": (with_tensors(bias=holed(np.nan)), "NaN or infinity"),
    "infinity": (with_tensors(bias=holed(-np.inf)), "NaN or infinity"),
    "float64": (with_tensors(bias=np.zeros(3)), "got F64"),
    "int8": (with_tensors(kernel=MASK.astype(np.int8)), "got I8"),
    "mask_of_two_dimensions": (with_tensors(kernel=MASK[None].copy()), "one dimension"),
    "fewer_tensors_than_told": (with_tensors(bias=None), "expected 2 as the manifest says, got 1"),
    "more_tensors_than_told": (with_tensors(matrix=BASE["c7"]), "expected 2 as the manifest"),
    "a_mask_for_a_tensor": (with_tensors(bias=MASK), "masks: expected 1"),
}
# Refused when it is applied.
APPLIED = {
    "unknown_tensor": (with_tensors(bias=None, strange=holed(1)), "a name that it has not"),
    "wrong_shape": (with_tensors(bias=np.zeros(4, np.float32)), "expected shape [3], got [4]"),
    "right_size_wrong_shape": (with_tensors(bias=holed(1)[None].copy()), "expected shape [3]"),
    "no_elements": (with_tensors(bias=np.zeros(0, np.float32)), "expected shape [3], got [0]"),
    "integers_replaced": (with_tensors(bias=None, integers=holed(1)), "it has I64"),
    "too_few_bits": (with_tensors(kernel=MASK[:-1].copy()), "expected 7 bytes for a mask of 54"),
    "too_many_bits": (with_tensors(kernel=np.append(MASK, MASK[:1])), "expected 7 bytes"),
    "bits_behind_the_last": (with_tensors(kernel=MASK | np.uint8(128)), "zeros behind the last"),
    "another_value": (with_tensors(bias=holed(1)), "expected the patched weights"),
    "another_bit": (with_tensors(kernel=MASK ^ np.uint8(1)), "expected the patched weights"),
}


def refused(attack: Callable[[], object], message: str) -> None:
    with pytest.raises(BundleError) as caught:
        attack()
    assert message in caught.value.message
    assert PATCH_NAME in caught.value.message
    assert caught.value.fix
    assert caught.value.exit_code == 4
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ALONE)
def test_a_hostile_patch_is_refused_without_a_backbone(name: str) -> None:
    data, message = ALONE[name]
    refused(lambda: check_patch(GOOD.about, data), message)
    refused(lambda: apply_patch(BYTES, GOOD.about, data), message)


@pytest.mark.parametrize("name", APPLIED)
def test_a_patch_that_does_not_fit_is_refused(name: str) -> None:
    data, message = APPLIED[name]
    check_patch(GOOD.about, data)
    refused(lambda: apply_patch(BYTES, GOOD.about, data), message)


SCALED = made(changed(kernel=folded(BASE[KERNEL], np.array([2, 3, 1e-3], np.float32))))


def factors(*values: float) -> bytes:
    return save({KERNEL: np.array(values, np.float32)})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (factors(2, np.nan, 1), "NaN or infinity"),
        (factors(2, np.inf, 1), "NaN or infinity"),
        (factors(2, 3e38, 1), "expected finite products"),
        (factors(2, 3), "or [3], got [2]"),
        (factors(2, 3, 1, 1), "or [3], got [4]"),
        (factors(), "or [3], got [0]"),
        (factors(2, 3, 1), "expected the patched weights"),
        (save({KERNEL: np.full((3, 1), 2, np.float32)}), "or [3], got [3, 1]"),
        (save({KERNEL: np.full(3, 2, np.float64)}), "got F64"),
        (save({KERNEL: BASE[KERNEL] + 1}), "scaled: expected 1 as the manifest says, got 0"),
        (save({BIAS: BASE[BIAS] + 1}), "scaled: expected 1 as the manifest says, got 0"),
    ],
)
def test_hostile_factors_are_refused(data: bytes, told: str) -> None:
    refused(lambda: apply_patch(BYTES, SCALED.about, data), told)


def test_factors_of_a_tensor_without_channels_are_refused() -> None:
    base = save({**BASE, "c7": np.zeros((0, 5), np.float32)})
    data = save({"c7": np.zeros(0, np.float32)})
    refused(lambda: apply_patch(base, SCALED.about, data), "expected the patched weights")


def test_factors_that_the_manifest_does_not_tell_are_refused() -> None:
    about = replace(SCALED.about, scaled=0)
    refused(lambda: apply_patch(BYTES, about, SCALED.data), "scaled: expected 0")


def test_a_patch_for_another_backbone_is_refused() -> None:
    refused(lambda: apply_patch(save(drawn(1)), GOOD.about, GOOD.data), "the patched weights")


@given(st.integers(0, len(GOOD.data) - 1), st.integers(0, 7))
def test_no_flipped_bit_gives_other_weights(place: Any, bit: Any) -> None:
    """Law: every bit of a patch counts, but for spellings of the header that say the same."""
    data = bytearray(GOOD.data)
    data[place] ^= 1 << bit
    try:
        weights = apply_patch(BYTES, GOOD.about, bytes(data))
    except BundleError:
        return
    assert weights == GOOD.weights


# In a bundle


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bundle with the patch; nobody changes it."""
    path = tmp_path_factory.mktemp("patched") / "cars.da3b"
    pack(path, replace(MANIFEST, patch=GOOD.about), [*PAYLOADS, payload(GOOD.data)])
    return path.read_bytes()


def payload(data: bytes) -> Payload:
    return Payload("patch", PATCH_NAME, data)


def test_a_bundle_carries_its_patch(patched: bytes) -> None:
    bundle = read_bundle(patched)
    assert bundle.manifest.patch == GOOD.about
    assert bundle.blob(PATCH_NAME) == GOOD.data
    assert any(line.startswith("patch: 2 tensors") for line in bundle.checks)


def test_a_bundle_without_one_has_no_key_for_it(good: bytes) -> None:
    """What was written before there were patches is read, and written, as it was."""
    bundle = read_bundle(good)
    assert bundle.manifest.patch is None
    assert "patch" not in json.loads(bundle.manifest.to_json())
    assert not any("patch" in line for line in bundle.checks)


@pytest.mark.parametrize("name", ALONE)
def test_no_bundle_is_written_with_a_hostile_patch(name: str, tmp_path: Any) -> None:
    data, message = ALONE[name]
    manifest = replace(MANIFEST, patch=GOOD.about)
    with pytest.raises(BundleError) as caught:
        pack(tmp_path / "a.da3b", manifest, [*PAYLOADS, payload(data)])
    assert message in caught.value.message
    assert not list(tmp_path.iterdir())


def _drop_file(document: dict[str, Any]) -> None:
    document["files"] = [one for one in document["files"] if one["role"] != "patch"]


def _second_file(document: dict[str, Any]) -> None:
    (own,) = (one for one in document["files"] if one["role"] == "patch")
    document["files"].append({**own, "name": "zpatch.safetensors"})


def _put(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["patch"].update(values)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "patch_of_null": (lambda d: d.update(patch=None), "patch: expected a section of keys"),
    "patch_untold": (lambda d: d.pop("patch"), "expected 0 of role 'patch'"),
    "patch_without_a_file": (_drop_file, "expected 1 of role 'patch' as `patch` says, got 0"),
    "patch_twice": (_second_file, "expected 1 of role 'patch' as `patch` says, got 2"),
    "more_tensors_than_there_are": (_put(tensors=4), "expected at most 3"),
    "more_masks_than_tensors": (_put(masks=3), "expected at most 2"),
    "more_scaled_than_the_rest": (_put(scaled=2), "expected at most 1 beside the masks"),
    "scaled_untold": (lambda d: d["patch"].pop("scaled"), "patch.scaled: missing"),
    "no_tensors": (_put(tensors=0, masks=0), "patch.tensors: expected"),
    "tensors_beyond_the_limit": (_put(tensors=2**30, of=2**30), "patch.of: expected"),
    "digest_of_nothing": (_put(digest="md5:00"), "patch.digest: expected"),
    "address_in_the_patch": (_put(url="x"), "patch.url: unknown key"),
    "counts_that_lie": (_put(tensors=3), "tensors: expected 3 as the manifest says, got 2"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_lies_about_its_patch_is_refused(name: str, patched: bytes) -> None:
    edit, message = MANIFESTS[name]
    with pytest.raises(BundleError) as caught:
        read_bundle(edited(patched, edit))
    assert message in caught.value.message


def test_a_patch_says_what_kind_it_is() -> None:
    about = Patch(2, 0, 0, 3, GOOD.about.digest)
    counts = ((2, 2, 0), (3, 3, 0), (3, 0, 0), (3, 2, 0), (3, 0, 1), (2, 1, 0))
    kinds = [replace(about, tensors=t, masks=m, scaled=s).kind for t, m, s in counts]
    assert kinds == ["masked", "masked", "whole", "tensors", "tensors", "tensors"]
