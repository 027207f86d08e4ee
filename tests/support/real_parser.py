"""NVIDIA's real parser and builder, which need no GPU, and the toy domain's graphs for them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest

from tests.support.exported import Exported
from toolchain.device.engine.features import TensorRT, load

Graph = Callable[[str], bytes]


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    """The module ``tensorrt_rtx``."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed: pip install '.[tensorrt-rtx]'")
    return load("tensorrt_rtx")


@pytest.fixture(scope="session")
def graph(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Bytes of a shipped graph of the toy domain with all weights inside, by name."""
    from tests.support import branch_graphs  # imports onnx, which other tests here go without

    made: dict[str, bytes] = {}

    def one(name: str) -> bytes:
        if name not in made:
            folder = tmp_path_factory.mktemp("inlined")
            made[name] = branch_graphs.linked(exported, name, folder).SerializeToString()
        return made[name]

    return one
