"""What every block of a residual net promises to the adaptors around it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from da3_models import resnet20, resnet26
from da3_models.residual import PoolAndPad, projection
from torch import Tensor, nn


def blocks_of(net: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, m) for n, m in net.named_modules() if n.startswith("layer") and n.count(".") == 1]


@pytest.mark.parametrize(("module", "blocks"), [(resnet20, 9), (resnet26, 12)])
def test_blocks_map_one_tensor_to_one_tensor_and_leave_it_alone(
    module: ModuleType, blocks: int
) -> None:
    """Law: a block never changes its input, which its adaptor reads again."""
    net = module.build(5).eval()
    names: list[str] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            assert len(args) == 1 and isinstance(out, Tensor)
            torch.testing.assert_close(args[0], inputs.pop(name), rtol=0, atol=0)
            names.append(name)

        return hook

    inputs: dict[str, Tensor] = {}
    for name, block in blocks_of(net):
        block.register_forward_pre_hook(
            lambda _, args, name=name: inputs.__setitem__(name, args[0].clone())
        )
        block.register_forward_hook(note(name))
    with torch.no_grad():
        net(torch.randn(2, 3, 32, 32))
    assert names == [name for name, _ in blocks_of(net)]
    assert len(names) == blocks


def test_projection_is_absent_exactly_where_the_shape_stays() -> None:
    assert projection(16, 16, 1) is None
    for inputs, outputs, stride in [(16, 32, 1), (16, 16, 2), (16, 32, 2)]:
        shortcut = projection(inputs, outputs, stride)
        assert shortcut is not None
        assert shortcut(torch.zeros(1, inputs, 8, 8)).shape == (
            1,
            outputs,
            8 // stride,
            8 // stride,
        )


def test_pool_and_pad_averages_and_appends_zero_channels() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    y = PoolAndPad(1, 3, 2)(x)
    assert y.shape == (1, 3, 2, 2)
    assert y[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert not y[:, 1:].any()
