"""NVIDIA's real ONNX parser and builder on a CPU (the package tensorrt-rtx)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx_ir as ir
import pytest


@dataclass
class Parsed:
    """A parsed network and the objects that it lives in; ``said`` are the logger's lines."""

    module: Any
    builder: Any
    network: Any
    parser: Any
    said: list[str]

    def count(self, kind: str) -> int:
        """How many layers of a kind the network has."""
        kinds = [self.network.get_layer(i).type.name for i in range(self.network.num_layers)]
        return kinds.count(kind)

    def plan(self, classes: tuple[int, int, int] = (1, 5, 100)) -> int:
        """Build it and return the plan's size in bytes."""
        config = self.builder.create_builder_config()
        profile = self.builder.create_optimization_profile()
        free = False
        for index in range(self.network.num_inputs):
            tensor = self.network.get_input(index)
            if -1 in tuple(tensor.shape):
                free = True
                shapes = [tuple(n if s == -1 else s for s in tensor.shape) for n in classes]
                profile.set_shape(tensor.name, *shapes)
        if free:
            config.add_optimization_profile(profile)
        made = self.builder.build_serialized_network(self.network, config)
        assert made is not None, self.said
        return int(made.nbytes)


@cache
def _logger() -> Any:
    """The one logger of this process: TensorRT keeps the first and ignores any other."""
    import tensorrt_rtx as trt

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                self.said.append(text)

    return Logger()


def parse(model: ir.Model) -> Parsed:
    """Parse a model with its weights inside; skips where the package is not installed."""
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    logger = _logger()
    lines: list[str] = logger.said
    lines.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(ir.to_proto(model).SerializeToString())
    result = Parsed(trt, builder, network, (parser, logger), list(lines))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    return result
