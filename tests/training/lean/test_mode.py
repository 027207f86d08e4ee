"""The mode: whole nets, hooks, autocast, the compiler, and what must not work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointError, checkpoint

from tests.support.lean_parity import kept_bytes, lean_bytes
from toolchain.core.errors import AttachError
from toolchain.training.lean import Lean, LeanMode
from toolchain.training.lean.mode import TABLE
from toolchain.training.lean.options import Keep


class Residual(nn.Module):
    """A block as torchvision writes it: in-place activations, ``out += identity``."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(channels, 8, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.down(x)
        answer: Tensor = self.relu(out)
        return answer


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(3, 2, 1),
        Residual(8, 1), Residual(8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def mobile() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(True),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8, padding_mode="circular"), nn.GroupNorm(2, 8),
        nn.LeakyReLU(0.1, True), nn.AvgPool2d(2), nn.Conv2d(8, 16, 1), nn.Hardswish(True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 8), nn.GELU(),
        nn.Linear(8, 5), nn.SiLU(),
    )  # fmt: skip


NETS = {"residual": residual, "mobile": mobile}
TRAINED: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "biases": lambda name: name.endswith("bias"),
    "weights": lambda name: name.endswith("weight"),
    "last": lambda name: name.startswith(("8.", "14.")),
}


def made(name: str, trained: str) -> nn.Module:
    net = NETS[name]().eval()
    for key, parameter in net.named_parameters():
        parameter.requires_grad_(TRAINED[trained](key))
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return net


def gradients(net: nn.Module, x: Tensor, lean: Lean | None) -> dict[str, Tensor]:
    net.zero_grad()
    if lean is None:
        loss = net(x).square().sum()
    else:
        with LeanMode(lean):
            loss = net(x).square().sum()
    torch.autograd.backward(loss)
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("name", NETS)
def test_whole_nets_have_stock_gradients(name: str, trained: str) -> None:
    net, x = made(name, trained), torch.randn(3, 3, 16, 16)
    keys = list(net.state_dict())
    torch.testing.assert_close(
        gradients(net, x, Lean()), gradients(net, x, None), rtol=1e-5, atol=1e-6
    )
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize(("precision", "near"), [("half", 5e-3), ("int8", 5e-2)])
@pytest.mark.parametrize("name", NETS)
def test_quantised_maps_give_near_gradients(name: str, precision: Keep, near: float) -> None:
    net, x = made(name, "all"), torch.randn(3, 3, 16, 16)
    stock = gradients(net, x, None)
    for key, gradient in gradients(net, x, Lean(precision)).items():
        assert float((gradient - stock[key]).norm()) <= near * float(stock[key].norm()), key


def test_shifts_keep_bits_alone() -> None:
    net, x = made("residual", "biases"), torch.randn(2, 3, 16, 16)
    free = (*net.parameters(), *net.buffers())
    stem, first, second = 2 * 8 * 8 * 8, 2 * 8 * 4 * 4, 2 * 8 * 2 * 2
    bits = (stem + 2 * first + 2 * second) // 8
    assert lean_bytes(lambda: net(x), *free) == bits + first  # and one byte per maximum
    assert kept_bytes(lambda: net(x), *free) > 30 * bits


def test_nothing_before_the_first_trained_layer_is_kept() -> None:
    net, x = made("residual", "last"), torch.randn(2, 3, 16, 16)
    assert lean_bytes(lambda: net(x), *net.parameters(), *net.buffers()) == 2 * 8 * 4


@pytest.mark.parametrize(("trained", "precision"), [("biases", "fp32"), ("all", "half")])
@pytest.mark.parametrize("name", NETS)
def test_autocast(name: str, trained: str, precision: Keep) -> None:
    net, x = made(name, trained), torch.randn(3, 3, 16, 16)
    results = []
    for lean in (None, Lean(precision)):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(gradients(net, x, lean))
    for key, stock in results[0].items():
        ours = results[1][key]
        assert ours.dtype == stock.dtype
        assert float((ours - stock).norm()) <= 0.05 * float(stock.norm()) + 1e-3, key


def test_hooks_and_retained_gradients_see_the_maps() -> None:
    net, x = made("residual", "biases"), torch.randn(2, 3, 16, 16)
    results: list[list[Tensor]] = []
    for mode in (False, True):
        maps: list[Tensor] = []

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            maps.append(args[0].detach().clone())  # noqa: B023 - used within the round
            output.retain_grad()
            maps.append(output)  # noqa: B023

        handle = net[4].conv2.register_forward_hook(hook)  # type: ignore[index]
        gradients(net, x, Lean() if mode else None)
        handle.remove()
        assert maps[1].grad is not None
        results.append([maps[0], maps[1].detach(), maps[1].grad])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_a_hook_that_needs_the_dropped_map_keeps_it_itself() -> None:
    conv = nn.Conv2d(2, 2, 3).requires_grad_(False)
    products: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach()
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda g: products.append((x[:, :, 1:-1, 1:-1] * g).sum())
        )

    conv.register_forward_hook(hook)
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    with LeanMode(Lean()):
        torch.autograd.backward(conv(x).sum())
    torch.testing.assert_close(products, [x.detach()[:, :, 1:-1, 1:-1].sum()])


@pytest.mark.parametrize("precision", ["fp32", "half", "int8"])
def test_a_kept_map_must_not_be_changed(precision: Keep) -> None:
    x = torch.randn(2, 3, requires_grad=True) * 1
    weight, frozen = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    with LeanMode(Lean(precision)):
        y, z = F.linear(x, weight), F.linear(x, frozen)
    x.mul_(2)
    torch.autograd.backward(z.sum(), retain_graph=True)  # nothing of x was kept
    if precision == "fp32":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.backward(y.sum())
    else:  # the copy is our own
        torch.autograd.backward(y.sum())
    with LeanMode(Lean(precision)):
        z = F.linear(x.detach().requires_grad_(), frozen)
    frozen.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(z.sum())


def test_a_second_backward_pass_is_refused() -> None:
    net, x = made("residual", "biases"), torch.randn(2, 3, 16, 16, requires_grad=True)
    with LeanMode(Lean()):
        y = net(x).sum()
    with pytest.raises(AttachError, match=r"expected one backward pass.*\s+fix:.*lean=False"):
        torch.autograd.grad(y, x, create_graph=True)
    torch.autograd.grad(y, x, retain_graph=True)
    torch.autograd.grad(y, x)


def test_checkpointing_works_with_the_mode_inside() -> None:
    net, x = made("mobile", "biases"), torch.randn(2, 3, 16, 16)

    def inside(x: Tensor) -> Tensor:
        with LeanMode(Lean()):
            answer: Tensor = net(x)
        return answer

    stock = gradients(net, x, None)
    net.zero_grad()
    torch.autograd.backward(checkpoint(inside, x, use_reentrant=False).square().sum())
    results = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    torch.testing.assert_close(results, stock, rtol=1e-5, atol=1e-6)
    with LeanMode(Lean()):
        y = checkpoint(net, x, use_reentrant=False)
    with pytest.raises(CheckpointError, match="different metadata"):
        torch.autograd.backward(y.sum())


def test_unknown_functions_run_stock() -> None:
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    with LeanMode(Lean()):
        y = F.elu(F.interpolate(x, scale_factor=2)) * torch.sigmoid(x).mean()
        y = y + nn.MultiheadAttention(6, 2)(x[0], x[0], x[0])[0].sum()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all()
    assert F.elu not in TABLE


def test_what_torch_refuses_is_refused_in_its_words() -> None:
    x, w = torch.randn(1, 2, 8, 8, requires_grad=True), torch.randn(2, 2, 3, 3)
    calls: list[Callable[[], object]] = [
        lambda: F.conv2d(x, w, stride=2, padding="same"),
        lambda: F.conv2d(x, w, padding="bogus"),
        lambda: F.max_pool2d(x, 2, 0),
        lambda: F.avg_pool2d(x, 2, 0),
    ]
    for call in calls:
        with pytest.raises(RuntimeError) as stock:
            call()
        with LeanMode(Lean()), pytest.raises(RuntimeError) as lean:
            call()
        assert str(lean.value) == str(stock.value)


def test_shapes_alone_run_backward_too() -> None:
    x = torch.randn(1, 2, 8, 8, device="meta", requires_grad=True)
    w = torch.randn(2, 2, 3, 3, device="meta")
    with LeanMode(Lean()):
        y = F.avg_pool2d(F.relu(F.conv2d(x, w)), 2)
    torch.autograd.backward(y.sum())
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_a_map_with_the_negative_bit_is_packed() -> None:
    x = torch.randn(1, 2, 8, 8)
    plain = (-x).requires_grad_()
    lazy = torch._neg_view(x).requires_grad_()
    with LeanMode(Lean()):
        torch.autograd.backward(F.relu(plain).sum())
        torch.autograd.backward(F.relu(lazy).sum())
    assert plain.grad is not None
    assert lazy.grad is not None
    assert torch.equal(plain.grad, lazy.grad)


def test_subnets_may_leave_the_mode_off() -> None:
    net, x = made("mobile", "biases"), torch.randn(2, 3, 16, 16)
    with LeanMode(Lean()), torch.no_grad():
        inside = net(x)
    assert torch.equal(inside, net(x))


# The compiler makes an object of the Function that it traces; torch itself deprecates that.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("entered", "precision"), [("inside", "fp32"), ("outside", "int8")])
def test_compiled(entered: str, precision: Keep) -> None:
    net, x = made("mobile", "biases"), torch.randn(2, 3, 16, 16)
    lean = Lean(precision)

    def inside(x: Tensor) -> Tensor:
        with LeanMode(lean):
            answer: Tensor = net(x)
        return answer

    stock = gradients(net, x, lean)
    net.zero_grad()
    torch._dynamo.reset()
    if entered == "inside":
        y = torch.compile(inside, backend="aot_eager", fullgraph=True)(x)
    else:
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        with LeanMode(lean):
            y = compiled(x)
    torch.autograd.backward(y.square().sum())
    results = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    torch.testing.assert_close(results, stock, rtol=1e-4, atol=1e-5)
