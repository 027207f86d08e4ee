"""The repository: which files a name may reach, and replacing while others ask."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.device.serve.conftest import LIMITS
from tests.support.asking import call, inference, pictures
from tests.support.exported import Exported
from tests.support.waiting import until
from toolchain.device import Runner
from toolchain.device.serve.app import LOADS, LOADS_WAITING, App

LOAD = "/v2/repository/models/{}/load"


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Path:
    """A repository below a folder that holds a bundle which it must not reach."""
    inside = tmp_path / "repository"
    inside.mkdir()
    shutil.copy(exported.bundle, inside / "cars.da3b")
    shutil.copy(exported.bundle, tmp_path / "outside.da3b")
    return inside


@pytest.fixture
def app(runner: Runner, folder: Path) -> App:
    return App(runner, LIMITS, repository=folder, control=True, loopback=True)


@pytest.mark.parametrize("what", ["load", "unload"])
def test_nobody_loads_or_unloads_unless_it_was_allowed(
    runner: Runner, folder: Path, what: str
) -> None:
    """As Triton's default: the models stay as they are, and the answer says why."""
    app = App(runner, LIMITS, repository=folder, control=False, loopback=True)
    before = dict(runner.domains)
    answer = call(app, "POST", f"/v2/repository/models/cars/{what}", b"{}")
    assert (answer.status, runner.domains) == (403, before)
    assert "--control" in answer.error
    assert call(app, "POST", "/v2/repository/index").status == 200


def test_a_bundle_of_another_method_is_a_model_of_its_own(
    app: App, runner: Runner, folder: Path
) -> None:
    shutil.copy(folder / "cars.da3b", folder / "cars@head.da3b")
    listed = call(app, "POST", "/v2/repository/index").value
    assert "cars@head" in {model["name"] for model in listed}
    assert call(app, "POST", LOAD.format("cars@head"), b"{}").status == 200
    assert call(app, "GET", "/v2/models/cars@head/ready").status == 200
    assert call(app, "GET", "/v2/models/cars@head").value["name"] == "cars@head"


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "..%2Foutside",
        "..",
        ".",
        "",
        "cars\0",
        "cars.da3b",
        "outside",
        "*",
        "c?rs",
        "Cars",
        "/etc/passwd",
        "~",
        "cars ",
        "cafe\u0301",
        "\u202ecars",
    ],
)
def test_path_traversal_reaches_no_file(app: App, runner: Runner, folder: Path, name: str) -> None:
    before = dict(runner.domains)
    response = call(app, "POST", LOAD.format(name), b"{}")
    assert response.status in (400, 404)
    assert str(folder.parent) not in response.error
    assert runner.domains == before


def test_a_bundle_is_loaded_under_its_files_name(app: App, runner: Runner) -> None:
    assert call(app, "POST", LOAD.format("cars")).status == 200
    assert runner.domains["cars"].name == "cars"
    index = call(app, "POST", "/v2/repository/index").value
    assert [(one["name"], one["state"]) for one in index] == [
        ("cars", "READY"),
        ("toy_chirps", "READY"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b'{"parameters":{"config":"{}"}}',
        b'{"parameters":{"file:1/model.onnx":"AAAA"}}',
        b'{"parameters":[]}',
        b'{"files":{}}',
        b"[]",
        b"not JSON",
    ],
)
def test_nobody_sends_a_model_of_their_own(app: App, runner: Runner, body: bytes) -> None:
    assert call(app, "POST", LOAD.format("cars"), body).status == 400
    assert "cars" not in runner.domains


def test_an_altered_bundle_is_a_422_that_names_no_path(
    app: App, runner: Runner, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray((folder / "cars.da3b").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "cars.da3b").write_bytes(data)
    response = call(app, "POST", LOAD.format("cars"))
    assert (response.status, "failed verification" in response.error) == (422, True)
    assert str(folder) not in response.error
    assert "cars.da3b" in caplog.text
    assert "cars" not in runner.domains


def test_a_broken_release_leaves_the_loaded_one(app: App, runner: Runner, folder: Path) -> None:
    call(app, "POST", LOAD.format("cars"))
    before = runner.domains["cars"]
    (folder / "cars.da3b").write_bytes(b"not a bundle")
    assert call(app, "POST", LOAD.format("cars")).status == 422
    assert runner.domains["cars"] == before
    assert call(app, "POST", "/v2/models/cars/infer", inference(pictures())).status == 200


def test_what_could_not_be_loaded_is_told_with_its_reason_until_it_can(
    runner: Runner, folder: Path
) -> None:
    """At the start and later, in the index and beside health; a path of this machine never."""
    refused_before = {"bias": "needs more"}
    app = App(
        runner, LIMITS, repository=folder, refused=refused_before, control=True, loopback=True
    )
    whole = (folder / "cars.da3b").read_bytes()
    (folder / "cars.da3b").write_bytes(b"not a bundle")
    refused = call(app, "POST", LOAD.format("cars")).error
    reasons = {"bias": "needs more", "cars": refused}
    assert call(app, "GET", "/v2/health/ready").value == {"ready": True, "not_loaded": reasons}
    index = call(app, "POST", "/v2/repository/index").value
    assert {one["name"]: one["reason"] for one in index if one["reason"]} == reasons
    assert str(folder) not in str(index)
    (folder / "cars.da3b").write_bytes(whole)
    assert call(app, "POST", LOAD.format("cars")).status == 200
    assert list(call(app, "GET", "/v2/health/ready").value["not_loaded"]) == ["bias"]


def test_a_folder_named_as_a_bundle_is_none(app: App, folder: Path) -> None:
    (folder / "folder.da3b").mkdir()
    (folder / "-dash.da3b").write_bytes(b"")
    assert call(app, "POST", LOAD.format("folder")).status == 404
    names = [one["name"] for one in call(app, "POST", "/v2/repository/index").value]
    assert names == ["cars", "toy_chirps"]


def test_without_a_folder_nothing_is_loaded(runner: Runner) -> None:
    app = App(runner, LIMITS, repository=None, control=True, loopback=True)
    response = call(app, "POST", LOAD.format("toy_chirps"))
    assert (response.status, "without" in response.error) == (400, True)
    assert len(call(app, "POST", "/v2/repository/index").value) == 1


def test_unloading(app: App, runner: Runner) -> None:
    path = "/v2/repository/models/toy_chirps/unload"
    assert call(app, "POST", path, b'{"parameters":{"force":true}}').status == 400
    assert call(app, "POST", path, b'{"parameters":{"unload_dependents":false}}').status == 200
    assert dict(runner.domains) == {}
    assert call(app, "POST", path).status == 404


def test_changes_beyond_their_line_are_a_503(app: App) -> None:
    path = "/v2/repository/models/toy_chirps/unload"
    with ThreadPoolExecutor(8) as pool, ExitStack() as places:
        for _ in range(LOADS):
            places.enter_context(app.loading.turn())
        jobs = [pool.submit(call, app, "POST", path) for _ in range(LOADS_WAITING + 4)]
        until(lambda: sum(one.done() for one in jobs) == 4)
        assert {one.result().status for one in jobs if one.done()} == {503}
    others = [404] * (LOADS_WAITING - 1)
    assert sorted(one.result().status for one in jobs) == [200, *others] + [503] * 4
