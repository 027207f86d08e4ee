"""A domain as a model: one answer is of one release, also while it is being replaced."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.asking import pictures
from tests.support.exported import Exported
from toolchain.core.errors import TimeLimitError
from toolchain.device import Runner
from toolchain.device.serve.domains import config, predict, version
from toolchain.device.serve.faults import RefusedError
from toolchain.device.serve.protocol import Request
from toolchain.device.serve.tensors import NamedTensor

NAME = "toy_chirps"
TENSOR = pictures(2)
REQUEST = Request("", (NamedTensor("image", "FP32", TENSOR),), (), True, None)


def test_while_a_domain_is_replaced_each_answer_is_of_one_release(
    runner: Runner, exported: Exported, successor: Path
) -> None:
    expected = {}
    for bundle in (successor, exported.bundle):
        domain = runner.replace(bundle, name=NAME)
        expected[version(domain)] = runner.infer(TENSOR, NAME).logits
    assert len(expected) == 2
    done, versions = threading.Event(), set()

    def replace() -> None:
        for turn in range(40):
            runner.replace((successor, exported.bundle)[turn % 2], name=NAME)
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    while not done.is_set():
        try:
            response, _ = predict(runner, NAME, None, REQUEST, 10)
        except RefusedError:
            continue
        logits = next(tensor for tensor, _ in response.outputs if tensor.name == "logits")
        np.testing.assert_array_equal(logits.array, expected[response.version])
        versions.add(response.version)
    thread.join()
    assert versions <= set(expected)


def test_a_version_that_was_replaced_is_gone(runner: Runner, successor: Path) -> None:
    old = version(runner.domains[NAME])
    new = version(runner.replace(successor, name=NAME))
    assert old != new
    assert predict(runner, NAME, new, REQUEST, 10)[0].version == new


def test_time_that_is_over_before_the_model_runs(runner: Runner) -> None:
    with pytest.raises(TimeLimitError, match="over before the model ran"):
        predict(runner, NAME, None, REQUEST, -1)


def test_a_configuration_leaves_out_the_batch(runner: Runner) -> None:
    document = config(runner.domains[NAME], 8)
    assert document["max_batch_size"] == 8
    assert document["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [3, 12, 12]}]
    kinds = [one["data_type"] for one in document["output"]]
    assert kinds == ["TYPE_FP32", "TYPE_FP32", "TYPE_STRING", "TYPE_BOOL"]
    assert json.loads(document["parameters"]["gates"]["string_value"]) == ["block00", "block02"]
    assert len(json.loads(document["parameters"]["classes"]["string_value"])) == 8
