"""Small models for the tests of this room, and the ways they are run and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from tests.support.cases import Made
from toolchain.bundle.linkage import Flavour, Linkage
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph import store
from toolchain.export.graph.link import link

Array = npt.NDArray[Any]
# Captured toys that hold every operator and layout of linked graphs between them.
TOYS = ("plain", "inverted", "one_pixel", "preactivation", "channels_last", "tokens-da2")


def linked(made: Made, flavour: Flavour = "swap") -> ir.Model:
    """The linked graph of a captured toy with its tensors inside."""
    return link(made.loaded(), Linkage(flavour, "if"))


def feeds(made: Made, seed: int = 0, *, slots: bool = True) -> dict[str, Array]:
    """A picture, and the domain's tensors where they are inputs."""
    return {"image": made.case.images(1, seed).numpy(), **(made.slots if slots else {})}


def run(model: ir.Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs of ``model``, its nodes run as they are written."""
    session = Session(store.to_bytes(model), exact=True)
    names = {value.name for value in model.graph.inputs}
    return session.run({name: array for name, array in inputs.items() if name in names})


def checked(model: ir.Model) -> onnx.ModelProto:
    """The model as onnx.checker accepts it in full."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def text(
    source: str, constants: Mapping[str, Array] | None = None, *, ir_version: int = 10
) -> ir.Model:
    """A model from ONNX's text form, with further constants."""
    proto = onnx.parser.parse_model(source)
    proto.ir_version = ir_version
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def operators(model: ir.Model) -> dict[str, int]:
    """How often each operator occurs, branches included."""
    from tests.support.cases import walk

    names = [node.op_type for node in walk(model.graph)]
    return {name: names.count(name) for name in sorted(set(names))}


def draw(shape: Sequence[int], seed: int = 0) -> Array:
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32)
