"""Every file of a kit is held to the graph that was measured, inside as well as at its end."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.support.cases import made
from tests.support.kitted import ORDERS
from toolchain.core.errors import PrecisionError
from toolchain.device.boards.target import find
from toolchain.export.emit import calibrate
from toolchain.export.emit.agreement import require_agreement
from toolchain.export.emit.models import KitModels, KitOrder, emit


@cache
def ranges() -> dict[str, float]:
    toy = made("plain")
    return dict(calibrate.ranges(toy.loaded(), toy.slots, pictures()).amax)


def pictures() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = (
        made("plain").case.images(24, 1).numpy()
    )
    return images


@cache
def models(key: str) -> KitModels:
    target, precision, flavours = ORDERS[key]
    order = KitOrder(find(target), precision, flavours)  # type: ignore[arg-type]
    return emit(made("plain").loaded(), order, rates={}, ranges=ranges())


def agree(kit: KitModels) -> None:
    require_agreement(made("plain").loaded(), kit, made("plain").slots, pictures())


def negated(data: bytes) -> bytes | None:
    """Turn the sign of one weight of a graph, wherever it lies; None for a graph without weights.

    Attack: a pass that leaves the graph whole and one tensor of a branch wrong.
    """
    model = onnx.load_model_from_string(data)

    def tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
        inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        return [*graph.initializer, *(t for branch in inner for t in tensors(branch))]

    weights = [t for t in tensors(model.graph) if len(t.dims) == 4 and np.prod(t.dims) > 64]
    if not weights:
        return None
    # The last one: in a whole network it lies in a branch.
    tensor = weights[-1]
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("key", ORDERS)
def test_what_the_passes_made_answers_as_what_was_measured(key: str) -> None:
    agree(models(key))


@pytest.mark.parametrize("key", ["orin int8", "orin fp16", "nano fp32"])
def test_one_wrong_weight_in_any_file_is_found(key: str) -> None:
    """Sabotage, file by file: of a segment that only an open gate runs, too."""
    kit = models(key)
    flavours = {item.file: f.flavour for f in kit.flavours for item in f.models}
    tried = 0
    for file, data in kit.files.items():
        wrong = negated(data)
        if wrong is None:
            continue
        tried += 1
        with pytest.raises(PrecisionError, match=f"the models of '{flavours[file]}' to answer"):
            agree(replace(kit, files={**kit.files, file: wrong}))
    assert tried > 3
