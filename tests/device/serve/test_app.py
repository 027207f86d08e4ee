"""The application without sockets: routes, statuses, and what any bytes may do to it."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.device.serve.conftest import LIMITS
from tests.support.asking import JSON, call, inference, pictures
from toolchain.device import Runner
from toolchain.device.serve.app import App

MODEL = "/v2/models/toy_chirps"


def test_health_and_metadata_of_the_server(app: App) -> None:
    assert call(app, "GET", "/v2/health/live").value == {"live": True}
    assert call(app, "GET", "/v2/health/ready").value == {"ready": True}
    document = call(app, "GET", "/v2").value
    assert document["name"] == "da3"
    assert "binary_tensor_data" in document["extensions"]


def test_a_model_tells_its_inputs_and_outputs(app: App, runner: Runner) -> None:
    domain = runner.domains["toy_chirps"]
    document = call(app, "GET", MODEL).value
    assert document["versions"] == [domain.release.removeprefix("sha256:")[:12]]
    assert document["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 12, 12]}]
    assert [(one["name"], one["datatype"], one["shape"]) for one in document["outputs"]] == [
        ("logits", "FP32", [-1, 8]),
        ("probabilities", "FP32", [-1, 8]),
        ("label", "BYTES", [-1]),
        ("gates", "BOOL", [-1, 2]),
    ]


def test_a_version_is_the_release(app: App) -> None:
    (version,) = call(app, "GET", MODEL).value["versions"]
    for rest in ("", "/ready", "/config", "/stats"):
        assert call(app, "GET", f"{MODEL}/versions/{version}{rest}").status == 200
        response = call(app, "GET", f"{MODEL}/versions/1{rest}")
        assert (response.status, "unknown version" in response.error) == (404, True)
    body = inference(pictures())
    assert call(app, "POST", f"{MODEL}/versions/{version}/infer", body).status == 200
    assert call(app, "POST", f"{MODEL}/versions/1/infer", body).status == 404


def test_an_answer_is_the_runners(app: App, runner: Runner) -> None:
    tensor = pictures(3)
    expected = runner.infer(tensor, "toy_chirps")
    document = call(app, "POST", f"{MODEL}/infer", inference(tensor, id="7")).value
    outputs = {one["name"]: one for one in document["outputs"]}
    assert (document["id"], document["model_name"]) == ("7", "toy_chirps")
    assert document["parameters"]["ms"] >= 0
    logits = np.array(outputs["logits"]["data"], np.float32).reshape(3, 8)
    np.testing.assert_array_equal(logits, expected.logits)
    np.testing.assert_array_equal(outputs["gates"]["data"], expected.gates.ravel())
    likely = np.reshape(outputs["probabilities"]["data"], (3, 8))
    np.testing.assert_allclose(likely.sum(axis=1), 1, rtol=1e-6)
    classes = runner.domains["toy_chirps"].classes
    assert outputs["label"]["data"] == [classes[i] for i in expected.logits.argmax(axis=1)]


def _file(kind: str, side: int = 20) -> bytes:
    drawn = np.random.default_rng(1).integers(0, 255, (side, side, 3), np.uint8)
    saved = io.BytesIO()
    Image.fromarray(drawn).save(saved, kind)
    return saved.getvalue()


def _logits(app: App, body: bytes, headers: dict[str, str]) -> Any:
    response = call(app, "POST", f"{MODEL}/infer", body, headers)
    assert response.status == 200, response.error
    return response.value["outputs"][0]["data"]


def test_pixels_a_picture_file_and_a_raw_body_say_the_same(app: App, runner: Runner) -> None:
    file = _file("PNG")
    pixels = np.asarray(Image.open(io.BytesIO(file)))[None]
    image = {
        "name": "image",
        "datatype": "UINT8",
        "shape": list(pixels.shape),
        "data": pixels.tolist(),
    }
    as_pixels = _logits(app, json.dumps({"inputs": [image]}).encode(), {})
    framed = len(file).to_bytes(4, "little") + file
    image = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(framed)},
    }
    head = json.dumps({"inputs": [image]}).encode()
    as_file = _logits(app, head + framed, {"Inference-Header-Content-Length": str(len(head))})
    raw = _logits(app, file, {"Inference-Header-Content-Length": "0"})
    expected = runner.infer(runner.prepare(pixels, "toy_chirps"), "toy_chirps")
    assert as_pixels == as_file == raw == expected.logits.ravel().tolist()


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "WEBP"])
def test_a_raw_body_may_be_any_format(app: App, kind: str) -> None:
    assert len(_logits(app, _file(kind), {"Inference-Header-Content-Length": "0"})) == 8


def test_the_best_classes_as_triton_writes_them(app: App, runner: Runner) -> None:
    tensor = pictures(2)
    outputs = [{"name": "probabilities", "parameters": {"classification": 99}}]
    document = call(app, "POST", f"{MODEL}/infer", inference(tensor, outputs=outputs)).value
    (output,) = document["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 8])
    value, index, label = output["data"][8].split(":")
    prediction = runner.run(tensor[1], "toy_chirps")
    assert (int(index), label) == (prediction.index, prediction.label)
    assert float(value) == pytest.approx(prediction.probability, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/", 404, "no such resource"),
        ("GET", "/v2/", 404, "no such resource"),
        ("GET", "/v1/models", 404, "no such resource"),
        ("GET", "/v2/models/nobody", 404, "unknown model 'nobody'"),
        ("GET", "/v2/models/nobody/ready", 404, "unknown model 'nobody'"),
        ("GET", "/v2/models//ready", 404, "unknown model ''"),
        ("POST", "/v2/models/nobody/infer", 404, "unknown model 'nobody'"),
        ("GET", "/v2/models/../../etc/passwd", 404, "no such resource"),
        ("GET", "/v2/models/a\0b", 404, "unknown model"),
        ("GET", f"{MODEL}/infer", 405, "expected POST, got GET"),
        ("POST", "/v2", 405, "expected GET, got POST"),
        ("DELETE", MODEL, 405, "expected GET, got DELETE"),
        ("X" * 999, MODEL, 405, "expected GET, got XXXX"),
        ("POST", f"{MODEL}/infer", 411, "expected a Content-Length"),
    ],
)
def test_what_is_not_there_is_told(
    app: App, method: str, path: str, status: int, said: str
) -> None:
    response = call(app, method, path)
    assert (response.status, said in response.error) == (status, True), response.error
    if status == 405:
        assert response.headers["Allow"] in ("GET", "POST")


def test_a_path_that_is_no_utf_8_is_refused(app: App) -> None:
    response = call(app, "GET", "/v2")
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/v2/\xff", "HTTP_HOST": "localhost"}
    statuses: list[str] = []
    app(environ, lambda status, headers: statuses.append(status))
    assert (response.status, statuses) == (200, ["400 Bad Request"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(b"not JSON", "expected JSON", id="no JSON"),
        pytest.param(inference(pictures(1, 11)), "[N, 3, 12, 12]", id="another size"),
        pytest.param(inference(pictures(9)), "1 to 8 pictures", id="beyond the batch"),
        pytest.param(
            inference(pictures()).replace(b'"FP32"', b'"FP64"'), "got FP64", id="wrong datatype"
        ),
        pytest.param(
            inference(pictures()).replace(b'"image"', b'"picture"'), "input image", id="wrong name"
        ),
        pytest.param(
            inference(pictures(), outputs=[{"name": "secrets"}]), "'secrets'", id="unknown output"
        ),
        pytest.param(
            inference(pictures(), outputs=[{"name": "gates", "parameters": {"classification": 1}}]),
            "classification",
            id="classes of gates",
        ),
        pytest.param(
            b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":["x"]}]}',
            "image 0: the bytes: expected a whole picture",
            id="a text that is no picture",
        ),
        pytest.param(
            b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[9],"data":%s}]}'
            % json.dumps(["x"] * 9).encode(),
            "at most 8 pictures",
            id="many files",
        ),
        pytest.param(
            b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1,1],"data":["x"]}]}',
            "got BYTES [1, 1]",
            id="files in two dimensions",
        ),
        pytest.param(
            b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,1,1],"data":[1]}]}',
            "[N, H, W, 3]",
            id="pixels in three dimensions",
        ),
        pytest.param(
            b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,1,1,4],"data":[1,2,3,4]}]}',
            "expected a uint8 picture",
            id="pixels with alpha",
        ),
    ],
)
def test_a_request_that_cannot_be_answered_is_a_400(app: App, body: bytes, said: str) -> None:
    response = call(app, "POST", f"{MODEL}/infer", body)
    assert (response.status, said in response.error) == (400, True), response.error


def test_nan_in_binary_data_is_a_400(app: App) -> None:
    tensor = pictures()
    tensor[0, 0, 0, 0] = np.nan
    image = {
        "name": "image",
        "datatype": "FP32",
        "shape": [1, 3, 12, 12],
        "parameters": {"binary_data_size": tensor.nbytes},
    }
    head = json.dumps({"inputs": [image]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    response = call(app, "POST", f"{MODEL}/infer", head + tensor.tobytes(), headers)
    assert (response.status, "NaN" in response.error) == (400, True)


def test_values_whose_logits_overflow_are_a_400(app: App) -> None:
    tensor = np.full((1, 3, 12, 12), 3e38, np.float32)
    response = call(app, "POST", f"{MODEL}/infer", inference(tensor))
    assert (response.status, "overflow" in response.error) == (400, True)


def test_a_decompression_bomb_is_a_400(app: App) -> None:
    saved = io.BytesIO()
    Image.new("1", (9000, 9000)).save(saved, "PNG")
    assert len(saved.getvalue()) < LIMITS.body_bytes
    headers = {"Inference-Header-Content-Length": "0"}
    response = call(app, "POST", f"{MODEL}/infer", saved.getvalue(), headers)
    assert (response.status, "expected 1 to 64000000 pixels" in response.error) == (400, True)


def test_a_body_beyond_the_limit_is_a_413(app: App) -> None:
    response = call(app, "POST", f"{MODEL}/infer", b" " * (LIMITS.body_bytes + 1))
    assert (response.status, "at most 200000 bytes, got 200001" in response.error) == (413, True)
    response = call(app, "POST", "/v2/repository/index", b" " * (64 * 1024 + 1))
    assert (response.status, "at most 65536 bytes" in response.error) == (413, True)


def test_a_timeout_of_the_client_is_a_504(app: App) -> None:
    body = inference(pictures(8), parameters={"timeout": 1})
    response = call(app, "POST", f"{MODEL}/infer", body)
    assert response.status == 504, response.body
    assert call(app, "POST", f"{MODEL}/infer", inference(pictures())).status == 200


def test_a_closed_application_is_live_but_not_ready(app: App) -> None:
    app.close()
    assert call(app, "GET", "/v2/health/live").status == 200
    response = call(app, "GET", "/v2/health/ready")
    assert (response.status, response.value["ready"]) == (503, False)
    for path in (f"{MODEL}/infer", "/v2/repository/models/toy_chirps/unload"):
        response = call(app, "POST", path, inference(pictures()) if "infer" in path else None)
        assert (response.status, response.error) == (503, "the server is stopping")
        assert response.headers["Retry-After"] == "1"


def test_a_closed_runner_is_a_404_or_503_and_no_fault_of_ours(app: App, runner: Runner) -> None:
    runner.close()
    response = call(app, "POST", f"{MODEL}/infer", inference(pictures()))
    assert response.status in (404, 503)


def test_statistics_count_what_was_asked(app: App) -> None:
    for count in (1, 2):
        call(app, "POST", f"{MODEL}/infer", inference(pictures(count)))
    call(app, "POST", f"{MODEL}/infer", b"{}")
    (statistics,) = call(app, "GET", f"{MODEL}/stats").value["model_stats"]
    assert (statistics["inference_count"], statistics["execution_count"]) == (3, 2)
    assert statistics["inference_stats"]["fail"]["count"] == 1
    assert (
        statistics["inference_stats"]["success"]["ns"]
        >= statistics["inference_stats"]["compute_infer"]["ns"]
    )
    assert call(app, "GET", "/v2/models/stats").value["model_stats"] == [statistics]
    call(app, "POST", "/v2/repository/models/toy_chirps/unload")
    assert call(app, "GET", "/v2/models/stats").value == {"model_stats": []}


def test_no_answer_may_be_stored_or_read_as_something_else(app: App) -> None:
    headers = call(app, "GET", "/v2").headers
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert not [name for name in headers if name.startswith("Access-Control")]


def test_a_fault_of_ours_says_nothing_of_the_machine(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(runner, LIMITS, repository=None, control=True, loopback=True)
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": f"{MODEL}/infer", "HTTP_HOST": "localhost"}
    # A server that announces a body and has none to read.
    environ["CONTENT_LENGTH"] = "3"
    statuses: list[str] = []
    body = b"".join(app(environ, lambda status, headers: statuses.append(status)))
    assert statuses == ["500 Internal Server Error"]
    assert json.loads(body) == {"error": "the server failed; its log says how"}
    assert "KeyError" in caplog.text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.binary(max_size=300),
    st.none() | st.sampled_from(["0", "2", "17"]),
    st.sampled_from([f"{MODEL}/infer", "/v2/repository/index", "/v2/repository/models/x/load"]),
)
def test_any_body_is_answered_without_a_fault_of_ours(
    app: App, body: bytes, header: str | None, path: str
) -> None:
    headers = {} if header is None else {"Inference-Header-Content-Length": header}
    assert call(app, "POST", path, body, headers).status in (200, 400, 404)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(["GET", "POST"]),
    st.text(max_size=30) | st.sampled_from([MODEL, "/v2/models/stats", "/v2/health"]),
    st.dictionaries(
        st.sampled_from(["Host", "Origin", "Content-Type", "Content-Encoding", "Content-Length"]),
        st.text(st.characters(max_codepoint=255), max_size=12),
    ),
)
def test_any_head_is_answered_without_a_fault_of_ours(
    app: App, method: str, path: str, headers: dict[str, str]
) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        return
    assert 200 <= call(app, method, path, b"{}", headers).status < 500


def test_the_index_shows_what_could_be_loaded(app: App) -> None:
    response = call(app, "POST", "/v2/repository/index", b"{}", JSON)
    (entry,) = response.value
    assert (entry["name"], entry["state"]) == ("toy_chirps", "READY")
    assert call(app, "POST", "/v2/repository/models/toy_chirps/unload").value == {}
    (entry,) = call(app, "POST", "/v2/repository/index").value
    assert entry["state"] == "UNAVAILABLE"
    assert call(app, "POST", "/v2/repository/index", b'{"ready":true}').value == []
    assert call(app, "POST", "/v2/repository/models/toy_chirps/load", b"{}").value == {}
    assert call(app, "GET", f"{MODEL}/ready").status == 200


@pytest.mark.parametrize("body", [b'{"ready":1}', b'{"x":1}', b"[]", b'{"ready":true,"x":1}'])
def test_an_index_request_that_is_none_is_a_400(app: App, body: bytes) -> None:
    assert call(app, "POST", "/v2/repository/index", body).status == 400
