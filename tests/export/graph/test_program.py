"""The program of a forward, or an error that names what is in the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import toys
from toolchain.core.errors import CaptureError
from toolchain.export.graph.program import trace_program
from toolchain.training.adapt.attached import attach


class Branching(toys.Residual):
    """A Python `if` on a tensor's value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > 0 else x * 2


class Counting(toys.Residual):
    """A Python int taken from a tensor's value."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            super()
            .forward(x)[:, :, : int(x.abs().max().clamp(2, 3).item())]
            .repeat(1, 1, 4, 1)[:, :, :8]
        )


class Looping(toys.Residual):
    """A Python loop over the batch fixes its size."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(Looping, self).forward(x[i : i + 1])[0] for i in range(len(x))])


class Reshaping(toys.Residual):
    """A batch of one, written as a number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(1, 8, 8, 8)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (Branching, r"Python `if`, loop or int\(\)[\s\S]*torch\.where"),
        (Counting, r"Python `if`, loop or int\(\)[\s\S]*torch\.where"),
        (
            Looping,
            r"fixes the batch size while it is traced: Constraints violated[\s\S]*x\.shape\[0\]",
        ),
        (Reshaping, r"fixes the batch size: [\s\S]*shape '\[1, 8, 8, 8\]'[\s\S]*x\.shape\[0\]"),
    ],
)
def test_what_the_exporter_would_bake_in_is_refused(block: Any, told: Any) -> None:
    """A Python decision on a tensor's value, or a fixed batch, never reaches a graph silently."""
    backbone = toys.Net(toys.stem(8), [block(8, 8)], 8).eval()
    with pytest.raises(CaptureError, match=told) as caught:
        trace_program(attach(backbone, classes=3, input_shape=(3, 8, 8), blocks=["blocks.0"]))
    assert caught.value.fix


class Neighbourly(toys.Residual):
    """Its answer for a sample depends on the rest of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(0, keepdim=True)


class Ticking(toys.Residual):
    """Its buffer counts forwards, in evaluation too."""

    n: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return super().forward(x)


class Drawing(toys.Residual):
    """Its dropout is never switched off."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.3)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Neighbourly, r"'blocks\.1' answers a picture otherwise alone"),
        (Ticking, r"'blocks\.1\.n' changes"),
        (Drawing, r"'blocks\.1' answers the same pictures otherwise each time"),
    ],
)
def test_a_block_with_a_memory_or_with_neighbours_is_refused(
    kind: type[toys.Residual], words: str
) -> None:
    net = toys.Net(nn.Conv2d(3, 8, 3, 2, 1), [toys.Residual(8, 8), kind(8, 8)], 8)
    with pytest.raises(CaptureError, match=words):
        trace_program(attach(net, classes=3, input_shape=(3, 16, 16)))


class Subtracting(toys.Net):
    """It takes the mean from its picture in place, as scripts for one picture do."""

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        answer: Tensor = super().forward(x)
        return answer


def test_a_net_that_writes_into_its_picture_is_refused() -> None:
    net = Subtracting(nn.Conv2d(3, 8, 3, 2, 1), [toys.Residual(8, 8)], 8)
    with pytest.raises(CaptureError, match="writes into the picture") as caught:
        trace_program(attach(net, classes=3, input_shape=(3, 16, 16)))
    assert "x = x - mean" in caught.value.fix
