"""Which slots TensorRT knows as weights, and what a refit that fails leaves behind."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.refit import mark, refit
from tests.support import apis
from tests.support.real_parser import Graph
from toolchain.core.errors import BuildError, EngineError
from toolchain.device.boards.cuda import gpus
from toolchain.device.engine.build import BuildOptions, build
from toolchain.device.engine.features import TensorRT, examine
from toolchain.device.engine.kit import ClassProfile
from toolchain.device.engine.log import Journal
from toolchain.device.engine.parse import parse

SLOTS = {"head.bias": np.zeros(3, np.float32), "head.weight": np.ones((3, 4), np.float32)}


def test_every_constant_slot_is_known(rtx: TensorRT, graph: Graph) -> None:
    """Measured: all slots of a static graph, also those that only a branch reads."""
    names = [name for name in parse(rtx, graph("swap-if")).inputs() if name != "image"]
    coverage = mark(parse(rtx, graph("static-if")), names)
    assert coverage.known == tuple(sorted(names))
    assert coverage.unknown == ()


def test_inputs_and_unknown_names_are_not(rtx: TensorRT, graph: Graph) -> None:
    coverage = mark(parse(rtx, graph("swap-if")), ["head.weight", "nonsense"])
    assert coverage.known == ()
    assert coverage.unknown == ("head.weight", "nonsense")


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_refittable_plan_needs_a_device(rtx: TensorRT, graph: Graph) -> None:
    """Measured: TensorRT-RTX builds without a GPU, but not what can be refitted."""
    network = parse(rtx, graph("static-if"))
    mark(network, ["head.weight"])
    options = BuildOptions("fp32", ClassProfile(1, 4, 8), refit=True, cpu_only=True)
    with pytest.raises(BuildError, match="CUDA"):
        build(network, options, free_bytes=1 << 30)


def test_older_releases_cannot(rtx: TensorRT, graph: Graph) -> None:
    network = parse(rtx, graph("static-if"))
    features = replace(rtx.features, refit_individual=False)
    with pytest.raises(EngineError, match="refits single weights"):
        mark(replace(network, trt=replace(rtx, features=features)), ["head.bias"])


class Refitter:
    """Keeps to the documented refitter: weights are checked when set, applied at the end."""

    def __init__(self, engine: dict[str, Any], logger: Any) -> None:
        self.engine, self.logger = engine, logger
        self.waiting: dict[str, Any] = {}

    def set_named_weights(self, name: str, weights: Any) -> bool:
        known = name in self.engine and self.engine[name].shape == weights.shape
        if not known:
            self.logger.take("ERROR", f"{name} is not refittable")
        else:
            self.waiting[name] = weights
        return known

    def get_missing_weights(self) -> list[str]:
        return sorted(self.engine.keys() - self.waiting.keys())

    def refit_cuda_engine(self) -> bool:
        assert not self.get_missing_weights()
        if any(not np.isfinite(array).all() for array in self.waiting.values()):
            self.logger.take("ERROR", "Error Code 1: refit failed")
            return False
        self.engine.update(self.waiting)
        return True


def simulated() -> TensorRT:
    assert {"set_named_weights", "get_missing_weights", "refit_cuda_engine"} <= apis.listing(
        "10.3.0"
    )["Refitter"]
    module, journal = apis.module("10.3.0"), Journal()
    module = SimpleNamespace(**{**vars(module), "Refitter": Refitter, "Weights": np.array})
    return TensorRT(module, "tensorrt", "10.3.0", examine(module), journal, journal)


def engine() -> dict[str, Any]:
    return {name: np.full_like(array, 9) for name, array in SLOTS.items()}


def test_refit_replaces_all() -> None:
    arrays = engine()
    refit(simulated(), arrays, {name: array.astype(np.float32) for name, array in SLOTS.items()})
    assert all((arrays[name] == array).all() for name, array in SLOTS.items())


@pytest.mark.parametrize(
    ("slots", "says"),
    [
        ({**SLOTS, "other": np.zeros(1)}, "no weights other of these shapes: other is not"),
        ({**SLOTS, "head.bias": np.zeros(4)}, "no weights head.bias of these shapes"),
        ({"head.bias": SLOTS["head.bias"]}, "also needs head.weight"),
        ({**SLOTS, "head.bias": np.full(3, np.nan)}, "Error Code 1: refit failed"),
    ],
    ids=["unknown", "other-shape", "missing", "fails-under-way"],
)
def test_refit_that_fails_says_why(slots: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        refit(simulated(), engine(), slots)
    assert "mixture" in caught.value.fix
