"""The real client of Triton against the server, over real sockets."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.support.asking import pictures
from toolchain.device import Runner
from toolchain.device.serve import Server

triton = pytest.importorskip("tritonclient.http")
errors = pytest.importorskip("tritonclient.utils")

NAME = "toy_chirps"


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as made:
        yield made


def _image(tensor: npt.NDArray[Any], datatype: str = "FP32", *, binary: bool = True) -> Any:
    image = triton.InferInput("image", list(tensor.shape), datatype)
    return image.set_data_from_numpy(tensor, binary_data=binary)


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready(NAME, "1")


def test_metadata_and_configuration(client: Any) -> None:
    server = client.get_server_metadata()
    model = client.get_model_metadata(NAME)
    assert "model_repository" in server["extensions"]
    assert client.get_model_metadata(NAME, model["versions"][0]) == model
    assert client.get_model_config(NAME)["max_batch_size"] == 8


@pytest.mark.parametrize("sent", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("wanted", [True, False], ids=["binary out", "JSON out"])
def test_several_outputs_of_a_batch(client: Any, runner: Runner, sent: bool, wanted: bool) -> None:
    tensor = pictures(4)
    names = ("gates", "logits", "label", "probabilities")
    outputs = [triton.InferRequestedOutput(name, binary_data=wanted) for name in names]
    result = client.infer(NAME, [_image(tensor, binary=sent)], outputs=outputs, request_id="7")
    expected = runner.infer(tensor, NAME)
    predictions = runner.run_batch(tensor, NAME)
    np.testing.assert_array_equal(result.as_numpy("logits"), expected.logits)
    np.testing.assert_array_equal(result.as_numpy("gates"), expected.gates)
    labels = [one if isinstance(one, str) else one.decode() for one in result.as_numpy("label")]
    assert labels == [one.label for one in predictions]
    best = result.as_numpy("probabilities").max(axis=1)
    np.testing.assert_allclose(best, [one.probability for one in predictions], rtol=1e-6)
    response = result.get_response()
    assert [one["name"] for one in response["outputs"]] == list(names)
    assert (response["id"], response["model_name"]) == ("7", NAME)


def test_all_outputs_without_asking(client: Any) -> None:
    response = client.infer(NAME, [_image(pictures())]).get_response()
    names = [one["name"] for one in response["outputs"]]
    assert names == ["logits", "probabilities", "label", "gates"]


def test_classification(client: Any, runner: Runner) -> None:
    tensor = pictures(2)
    outputs = [triton.InferRequestedOutput("logits", class_count=3)]
    classes = client.infer(NAME, [_image(tensor)], outputs=outputs).as_numpy("logits")
    assert classes.shape == (2, 3)
    prediction = runner.run(tensor[0], NAME)
    assert classes[0, 0].decode().endswith(f":{prediction.index}:{prediction.label}")


def test_pixels_and_files(client: Any, runner: Runner) -> None:
    drawn = np.random.default_rng(2).integers(0, 255, (2, 16, 14, 3), np.uint8)
    expected = runner.infer(runner.prepare(drawn, NAME), NAME).logits
    result = client.infer(NAME, [_image(drawn, "UINT8")])
    np.testing.assert_array_equal(result.as_numpy("logits"), expected)
    files = np.empty(2, object)
    for index, one in enumerate(drawn):
        saved = io.BytesIO()
        Image.fromarray(one).save(saved, "PNG")
        files[index] = saved.getvalue()
    result = client.infer(NAME, [_image(files, "BYTES")])
    np.testing.assert_array_equal(result.as_numpy("logits"), expected)


def test_asking_asynchronously(client: Any) -> None:
    waiting = [client.async_infer(NAME, [_image(pictures(2))]) for _ in range(2)]
    assert [one.get_result().as_numpy("label").shape for one in waiting] == [(2,), (2,)]


def test_the_repository(client: Any) -> None:
    client.load_model(NAME)  # a model that is loaded is loaded anew
    client.unload_model(NAME)
    assert not client.is_model_ready(NAME)
    assert client.get_model_repository_index()[0]["state"] == "UNAVAILABLE"
    client.load_model(NAME)
    assert client.get_model_repository_index()[0]["state"] == "READY"


@pytest.mark.parametrize(
    "given", [{"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"x"}}]
)
def test_a_model_of_the_client_is_refused(client: Any, given: dict[str, Any]) -> None:
    with pytest.raises(errors.InferenceServerException, match="no parameters of load"):
        client.load_model(NAME, **given)


def test_statistics(client: Any) -> None:
    client.infer(NAME, [_image(pictures(3))])
    (statistics,) = client.get_inference_statistics(NAME)["model_stats"]
    assert (statistics["inference_count"], statistics["execution_count"]) == (3, 1)
    assert client.get_inference_statistics()["model_stats"] == [statistics]


def _told(action: Any) -> tuple[str, str]:
    with pytest.raises(errors.InferenceServerException) as caught:
        action()
    return caught.value.status(), caught.value.message()


def test_faults_arrive_as_the_clients_own(client: Any) -> None:
    status, message = _told(lambda: client.get_model_metadata("nobody"))
    assert (status, message) == ("404", "unknown model 'nobody'")
    status, message = _told(lambda: client.infer(NAME, [_image(pictures(9))]))
    assert (status, "1 to 8 pictures" in message) == ("400", True)
    big = np.zeros((40, 3, 24, 24), np.float32)
    status, message = _told(lambda: client.infer(NAME, [_image(big)]))
    assert (status, "Too Large" in message) == ("413", True)
    # One connection did all that; it can go on.
    assert client.infer(NAME, [_image(pictures())]).as_numpy("label").shape == (1,)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_request_is_refused(client: Any, coding: str) -> None:
    image = [_image(pictures())]
    options = {"request_compression_algorithm": coding}
    assert _told(lambda: client.infer(NAME, image, **options))[0] == "415"
    result = client.infer(NAME, image, response_compression_algorithm=coding)
    assert result.as_numpy("label").shape == (1,)


def test_what_is_not_supported_is_refused_and_not_ignored(client: Any) -> None:
    image = [_image(pictures())]
    message = _told(lambda: client.infer(NAME, image, sequence_id=7, sequence_start=True))[1]
    assert "sequence_id" in message
    assert "priority" in _told(lambda: client.infer(NAME, image, priority=1))[1]
    assert "weight" in _told(lambda: client.infer(NAME, image, parameters={"weight": 1}))[1]
    shared = triton.InferInput("image", [1, 3, 12, 12], "FP32").set_shared_memory("region", 1728)
    assert "shared_memory" in _told(lambda: client.infer(NAME, [shared]))[1]
    assert _told(lambda: client.infer(NAME, image, timeout=1))[0] == "504"
    assert _told(client.get_system_shared_memory_status)[0] == "404"
    assert _told(client.get_log_settings)[0] == "404"
