"""The store of engines: exact keys, the nearest otherwise, and files that were tampered with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.device.engine.test_key import ORIN, TRT
from tests.support import small_kits
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.core.errors import (
    BundleError,
    Da3Error,
    DataError,
    EngineError,
    EngineMismatchError,
    ExistsError,
    StorageError,
)
from toolchain.device.engine.build import BuiltPlan
from toolchain.device.engine.cache import (
    ENGINE_NAME,
    LIMIT_PLAN_BYTES,
    EngineArtefact,
    EngineManifest,
    EnginePlan,
    EngineStore,
    Mismatch,
    mark,
    open_engine,
    require,
)
from toolchain.device.engine.key import EngineKey, key_of
from toolchain.device.engine.kit import Kit

PLAN = b"a plan" * 1000


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return small_kits.write(tmp_path / "kits")


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    (tmp_path / "engines").mkdir()
    return EngineStore(tmp_path / "engines")


def here(kit: Kit, **changes: Any) -> EngineKey:
    made = key_of(TRT, ORIN, kit, flavour="swap", options="level 3", l4t="R36.4.3", power="MAXN")
    return replace(made, **changes)


def manifest(kit: Kit, **changes: Any) -> EngineManifest:
    plans = (EnginePlan("whole", None, "swap.plan", 2),)
    return EngineManifest(
        "da3.engine/1", kit.backbone.name, here(kit, **changes), plans, (), "unproven", {}, {}
    )


def built(data: bytes = PLAN, *, cpu_only: bool = False) -> BuiltPlan:
    return BuiltPlan(data, 1.0, 1 << 20, (), (), cpu_only)


def put(store: EngineStore, kit: Kit, **changes: Any) -> EngineArtefact:
    return store.put(manifest(kit, **changes), {"swap.plan": built()}, kit)


def test_what_is_put_is_found_and_read(store: EngineStore, kit: Kit) -> None:
    made = put(store, kit)
    path = store.find(here(kit))
    assert path == made.path == store.path("toy", here(kit))
    artefact = open_engine(made.path)
    assert artefact == made
    assert artefact.read(artefact.manifest.plans[0]) == PLAN
    assert (artefact.kit, artefact.backbone) == (kit.manifest, kit.backbone)
    require(here(kit), artefact)


def test_same_inputs_same_bytes(store: EngineStore, kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, two = put(store, kit), put(EngineStore(tmp_path / "other"), kit)
    assert {p.name: p.read_bytes() for p in one.path.iterdir()} == {
        p.name: p.read_bytes() for p in two.path.iterdir()
    }
    assert one.path.name == two.path.name


def test_empty_store(store: EngineStore, kit: Kit, tmp_path: Path) -> None:
    assert store.find(here(kit)) == Mismatch(None, ())
    assert EngineStore(tmp_path / "absent").find(here(kit)) == Mismatch(None, ())


@pytest.mark.parametrize(
    ("part", "value"),
    [("tensorrt", "10.7.0"), ("gpu", "Thor"), ("l4t", None), ("power", "15W"), ("options", "x")],
)
def test_never_across_a_part_that_differs(
    store: EngineStore, kit: Kit, part: str, value: Any
) -> None:
    made = put(store, kit)
    key = here(kit, **{part: value})
    mismatch = store.find(key)
    assert isinstance(mismatch, Mismatch)
    assert mismatch.nearest == made.path
    assert [one.part for one in mismatch.differences] == [part]
    with pytest.raises(EngineMismatchError, match=f"{part}: expected {value}, got ") as caught:
        require(key, made)
    assert "da3 build" in caught.value.fix


def test_nearest_has_the_fewest_differences(store: EngineStore, kit: Kit) -> None:
    far = put(store, kit, sm="7.2", gpu="Xavier", cuda="11.4")
    near = put(store, kit, power="15W")
    mismatch = store.find(here(kit))
    assert isinstance(mismatch, Mismatch)
    assert (mismatch.nearest, len(mismatch.differences)) == (near.path, 1)
    assert far.path != near.path


def test_engine_of_another_kit_is_not_near(store: EngineStore, kit: Kit, tmp_path: Path) -> None:
    put(store, kit)
    other = small_kits.write(tmp_path / "more", replace(small_kits.manifest(), opset=13))
    assert store.find(here(other)) == Mismatch(None, ())


def test_existing_engine_is_kept(store: EngineStore, kit: Kit) -> None:
    made = put(store, kit)
    with pytest.raises(ExistsError):
        put(store, kit)
    store.put(manifest(kit), {"swap.plan": built(b"new")}, kit, overwrite=True)
    assert open_engine(made.path).read(made.manifest.plans[0]) == b"new"


def test_plan_of_no_device_is_not_stored(store: EngineStore, kit: Kit) -> None:
    with pytest.raises(EngineError, match=r"built on a device, got swap\.plan without"):
        store.put(manifest(kit), {"swap.plan": built(cpu_only=True)}, kit)
    assert list(store.folder.iterdir()) == []


def test_plans_and_manifest_must_agree(store: EngineStore, kit: Kit, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"see other\.plan, swap\.plan"):
        store.put(manifest(kit), {"other.plan": built()}, kit)
    other = small_kits.write(tmp_path / "more", replace(small_kits.manifest(), opset=13))
    with pytest.raises(BundleError, match=r"built_for\.kit: expected the digest of kit\.json"):
        store.put(manifest(kit), {"swap.plan": built()}, other)
    assert list(store.folder.iterdir()) == []


def test_verdict_is_written_down(store: EngineStore, kit: Kit) -> None:
    made = put(store, kit)
    after = mark(made.path, "not skipping", {"open_ms": 4.5, "closed_ms": 4.4})
    assert open_engine(made.path).manifest == after
    assert after == replace(made.manifest, gates="not skipping", figures=after.figures)
    assert after.figures["open_ms"] == 4.5
    with pytest.raises(BundleError, match="gates: expected one of"):
        mark(made.path, "maybe", {})
    assert open_engine(made.path).manifest == after


# Attacks on files that were stored right.


def truncated_plan(path: Path) -> None:
    (path / "swap.plan").write_bytes(PLAN[:-1])


def changed_bit(path: Path) -> None:
    (path / "swap.plan").write_bytes(bytes([PLAN[0] ^ 1]) + PLAN[1:])


def plan_is_gone(path: Path) -> None:
    (path / "swap.plan").unlink()


def plan_is_a_link(path: Path) -> None:
    (path / "swap.plan").rename(path.parent / "elsewhere")
    (path / "swap.plan").symlink_to(path.parent / "elsewhere")


def plan_is_a_folder(path: Path) -> None:
    (path / "swap.plan").unlink()
    (path / "swap.plan").mkdir()


def plan_is_a_pipe(path: Path) -> None:
    (path / "swap.plan").unlink()
    os.mkfifo(path / "swap.plan")


def stowaway(path: Path) -> None:
    (path / "libnvinfer_plugin.so").write_bytes(b"code")


def changed_kit(path: Path) -> None:
    text = (path / "kit.json").read_bytes()
    (path / "kit.json").write_bytes(text.replace(b'"opset":17', b'"opset":18'))


def manifest_is_a_link(path: Path) -> None:
    (path / ENGINE_NAME).rename(path.parent / "elsewhere")
    (path / ENGINE_NAME).symlink_to(path.parent / "elsewhere")


def manifest_is_cut(path: Path) -> None:
    (path / ENGINE_NAME).write_bytes((path / ENGINE_NAME).read_bytes()[:-2])


def manifest_is_gone(path: Path) -> None:
    (path / ENGINE_NAME).unlink()


def edited(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def attack(path: Path) -> None:
        document = json.loads((path / ENGINE_NAME).read_text())
        change(document)
        (path / ENGINE_NAME).write_bytes(canonical_json(document))

    return attack


def huge_size(document: Any) -> None:
    document["files"][-1]["size"] = 2**53 - 1


def large_size(document: Any) -> None:
    document["files"][-1]["size"] = LIMIT_PLAN_BYTES


def path_upwards(document: Any) -> None:
    document["plans"][0]["file"] = document["files"][-1]["name"] = "../swap.plan"


def other_kit(document: Any) -> None:
    document["built_for"]["kit"] = sha256(b"another")


def unknown_part(document: Any) -> None:
    document["built_for"]["moon"] = "full"


def lacking_part(document: Any) -> None:
    del document["built_for"]["sm"]


def listed_twice(document: Any) -> None:
    document["files"].append(document["files"][-1])


def no_plans(document: Any) -> None:
    document["plans"] = []


ATTACKS = [
    truncated_plan, changed_bit, plan_is_gone, plan_is_a_link, plan_is_a_folder, plan_is_a_pipe,
    stowaway, changed_kit, manifest_is_a_link, manifest_is_cut, manifest_is_gone,
]  # fmt: skip
EDITS = [
    huge_size, large_size, path_upwards, other_kit, unknown_part, lacking_part, listed_twice,
    no_plans,
]  # fmt: skip


@pytest.mark.parametrize(
    "attack",
    [*ATTACKS, *map(edited, EDITS)],
    ids=[attack.__name__ for attack in [*ATTACKS, *EDITS]],
)
def test_tampering_is_refused(store: EngineStore, kit: Kit, attack: Callable[[Path], None]) -> None:
    path = put(store, kit).path
    attack(path)
    with pytest.raises((BundleError, DataError, StorageError)) as caught:
        open_engine(path)
    assert str(path) in caught.value.message
    # Looking for an engine never fails over a damaged one.
    assert isinstance(store.find(here(kit)), Path | Mismatch)


@pytest.mark.parametrize("attack", [truncated_plan, changed_bit, plan_is_gone])
def test_plan_that_changes_after_it_was_verified(
    store: EngineStore, kit: Kit, attack: Callable[[Path], None]
) -> None:
    artefact = put(store, kit)
    attack(artefact.path)
    with pytest.raises(Da3Error):
        artefact.read(artefact.manifest.plans[0])


def test_engine_under_another_name_is_judged_by_its_key(store: EngineStore, kit: Kit) -> None:
    made = put(store, kit, sm="7.2")
    moved = made.path.rename(store.path("toy", here(kit)))
    mismatch = store.find(here(kit))
    assert isinstance(mismatch, Mismatch)
    assert mismatch.nearest == moved
    with pytest.raises(EngineMismatchError, match=r"sm: expected 8\.7, got 7\.2"):
        require(here(kit), open_engine(moved))
