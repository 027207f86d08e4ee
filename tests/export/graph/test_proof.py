"""The proof of a split: what PyTorch's exporter gets wrong is found, and the module named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import toys
from tests.support.cases import Made
from toolchain.core.errors import CaptureError
from toolchain.export.graph import proof
from toolchain.export.graph.proof import prove
from toolchain.export.graph.split import in_memory, split
from toolchain.training.adapt.attached import AttachedModel, attach


def pool() -> nn.Module:
    """An average that divides by another number than the pixels: PyTorch's exporter drops that."""
    return nn.AvgPool2d(3, 1, 1, divisor_override=5)


class Pooled(toys.Residual):
    """A block with such a pool inside."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.pool = pool()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.pool(x))


class PooledInPlace(Pooled):
    """The same, behind a convolution whose output the next activation overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(8, 8, 1), nn.SiLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.mix(x))


class CalledPool(toys.Residual):
    """The same, without a module of its own."""

    def __init__(self) -> None:
        super().__init__(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.avg_pool2d(x, 3, 1, 1, divisor_override=5))


def model(*blocks: nn.Module, stem: nn.Module | None = None) -> AttachedModel:
    first = toys.stem(8) if stem is None else nn.Sequential(toys.stem(8), stem)
    net = toys.Net(first, list(blocks), 8)
    names = [f"blocks.{i}" for i in range(len(blocks))]
    attached = attach(net, classes=3, input_shape=(3, 8, 8), blocks=names, rank=4)
    return toys.scrambled(attached)


FAULTS: dict[str, tuple[Callable[[], AttachedModel], tuple[str, str]]] = {
    "behind an activation in place": (
        (lambda: model(toys.Residual(8, 8), PooledInPlace())),
        ("'backbone.blocks.1.pool' wrongly: AvgPool2d", "'block.block01' differs"),
    ),
    "in a block": (
        (lambda: model(toys.Residual(8, 8), Pooled())),
        ("'backbone.blocks.1.pool' wrongly: AvgPool2d(", "so 'block.block01' differs"),
    ),
    "before the blocks": (
        (lambda: model(toys.Residual(8, 8), stem=pool())),
        ("'backbone.stem.1' wrongly: AvgPool2d(", "so 'in.block00' differs"),
    ),
    "in no module": (
        (lambda: model(CalledPool())),
        ("'block.block00' differs from PyTorch", "no module of 'blocks.0' alone does"),
    ),
}


@pytest.mark.parametrize("where", FAULTS)
def test_an_operator_that_the_exporter_gets_wrong_is_named(where: str, tmp_path: Path) -> None:
    made, words = FAULTS[where]
    with pytest.raises(CaptureError) as caught:
        split(made(), cache=tmp_path)
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert "other operators" in caught.value.fix
    assert not any(tmp_path.iterdir()), "a wrong structure was cached"


def test_the_fix_works() -> None:
    """What the message advises passes: the pool without its option, and a factor."""

    class Mended(toys.Residual):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.pool = nn.AvgPool2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.pool(x) * (9 / 5))

    split(model(Mended()))


def broken(made: Made, change: Any) -> None:
    halves = in_memory(made.halves)
    change(halves)
    prove(made.model, halves)


def without_gate(halves: Any) -> None:
    """A closed gate runs the block all the same; with open gates nothing shows."""
    join = next(node for node in halves.domain.graph if node.op_type == "Where")
    join.replace_input_with(2, join.inputs[1])


def with_other_weight(halves: Any) -> None:
    name, value = next(
        (n, v) for n, v in halves.backbone.graph.initializers.items() if "blocks.0" in n
    )
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.01), name=name)


@pytest.mark.parametrize(
    ("change", "word"),
    [(without_gate, "'out.block00' differs"), (with_other_weight, "'block.block00' differs")],
)
def test_halves_that_differ_anywhere_are_refused(plain: Made, change: Any, word: str) -> None:
    """Sabotage: one state of one gate, and one weight by a hundredth."""
    with pytest.raises(CaptureError, match=word):
        broken(plain, change)
    broken(plain, lambda halves: None)


def test_the_model_stays_as_it_is(plain: Made) -> None:
    before = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
    prove(plain.model, in_memory(plain.halves))
    after = plain.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_float64_runs_once_for_each_state_of_the_gates(
    plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many cut points ask for it: it takes a copy of the whole model."""
    runs: list[AttachedModel] = []
    exact = proof._in_float64

    def counted(model: AttachedModel, *args: Any) -> dict[str, Any]:
        runs.append(model)
        return exact(model, *args)

    monkeypatch.setattr(proof, "_in_float64", counted)
    prove(plain.model, in_memory(plain.halves))
    assert not runs, "float32 was within its bound, and float64 ran all the same"
    monkeypatch.setattr(proof, "TOLERANCE", -1.0)
    monkeypatch.setattr(proof, "ROUNDINGS", 1e6)
    prove(plain.model, in_memory(plain.halves))
    assert len(runs) == 2


class Fading(toys.Residual):
    """A norm takes a large level off that the convolution before it added: float32 loses digits."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.lift = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(self.lift(x)))


def fading(level: float) -> AttachedModel:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        block = Fading()
        made = model(block)
        assert block.lift.bias is not None
        assert block.norm.running_mean is not None
        block.lift.bias.fill_(level)
        block.norm.running_mean.fill_(level)
    return made


def test_a_net_that_loses_digits_may_round_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding and translation are held to what float32 loses, where that is more than the bound."""
    lossy = fading(1e4)
    halves = split(lossy)
    monkeypatch.setattr(proof, "ROUNDINGS", 0)
    with pytest.raises(CaptureError, match=r"'block\.block00' differs from PyTorch"):
        prove(lossy, in_memory(halves))
    with pytest.raises(CaptureError, match=r"folding BatchNorm changed 'block\.block00'"):
        split(lossy)


def test_what_a_net_loses_excuses_no_wrong_weight() -> None:
    lossy = fading(1e4)
    halves = in_memory(split(lossy))
    with_other_weight(halves)
    with pytest.raises(CaptureError, match=r"'block\.block00' differs from PyTorch"):
        prove(lossy, halves)


def test_a_net_that_loses_nearly_all_digits_cannot_be_proved() -> None:
    with pytest.raises(CaptureError, match=r"float32 itself loses 0\.\d+ of the range of 'block"):
        split(fading(1e6))


class Single(toys.Residual):
    """A block that makes a float32 tensor of its own: it has no float64."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ torch.ones(x.shape[-1], x.shape[-1])


def test_without_a_float64_nothing_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    single = model(Single(8, 8))
    halves = in_memory(split(single))
    monkeypatch.setattr(proof, "TOLERANCE", -1.0)
    with pytest.raises(CaptureError, match="differs from PyTorch"):
        prove(single, halves)
