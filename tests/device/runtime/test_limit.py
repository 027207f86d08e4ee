"""Time limits: they reach into a running model, and the session lives on."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.drawn import same
from toolchain.core.errors import TimeLimitError, UsageError
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.ort.backend import LinkedModel
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph.builder import GraphBuilder
from toolchain.export.graph.store import to_bytes

F32 = ir.DataType.FLOAT
STEPS = 400


def slow(batch: int | str) -> bytes:
    """Hundreds of matrix products, one after another: some milliseconds at 256 x 256."""
    sketch = GraphBuilder("slow", opset=18)
    sketch.input("image", F32, [batch, "n", "n"])
    value = "image"
    for step in range(STEPS):
        product = sketch.node("MatMul", [value, "image"], f"product{step}")
        value = sketch.node("Tanh", [product], "logits" if step == STEPS - 1 else f"value{step}")
    sketch.typed("logits", F32, [batch, "n", "n"])
    return to_bytes(sketch.model(["logits"], ir_version=10, metadata={}))


def images(count: int, side: int) -> Any:
    return np.random.default_rng(0).normal(size=(count, side, side)).astype(np.float32)


def test_a_limit_ends_a_run_and_the_session_lives_on() -> None:
    session = Session(slow("batch"), what="slow")
    before = session.run({"image": images(2, 8)})["logits"]
    with (
        TimeLimit(0.02) as limit,
        pytest.raises(TimeLimitError, match=r"slow: stopped after its limit of 0\.02 s") as caught,
    ):
        session.run({"image": images(16, 512)}, limit=limit)
    assert "fewer pictures" in caught.value.fix
    assert same(session.run({"image": images(2, 8)})["logits"], before)


def test_a_limit_counts_for_a_batch_that_is_looped() -> None:
    """Of pictures that are short each, so that the limit is over between or within any of them."""
    linked = LinkedModel(Session(slow(1), what="slow"))
    with TimeLimit(0.05) as limit, pytest.raises(TimeLimitError):
        linked.run(images(4000, 64), {}, limit)
    assert limit.over


def test_a_limit_that_is_over_lets_nothing_more_run() -> None:
    session = Session(slow("batch"))
    with TimeLimit(1e-6) as limit:
        while not limit.over:
            threading.Event().wait(0.001)
        with pytest.raises(TimeLimitError):
            session.run({"image": images(1, 2)}, limit=limit)


def test_a_run_within_its_limit_is_the_same_run_and_leaves_no_timer() -> None:
    session = Session(slow("batch"))
    inputs = {"image": images(2, 8)}
    before = threading.active_count()
    with TimeLimit(60) as limit:
        logits = session.run(inputs, limit=limit)["logits"]
        assert threading.active_count() == before + 1
        (timer,) = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    timer.join(10)
    assert not timer.is_alive()
    assert not limit.over
    assert same(logits, session.run(inputs)["logits"])


def test_a_limit_of_one_run_does_not_reach_another() -> None:
    session = Session(slow("batch"))
    with TimeLimit(1e-6) as short, TimeLimit(60) as long:
        while not short.over:
            threading.Event().wait(0.001)
        assert session.run({"image": images(1, 2)}, limit=long)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, threading.TIMEOUT_MAX * 2])
def test_a_limit_that_no_timer_can_wait_for_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="expected a time limit above 0"):
        TimeLimit(seconds)
