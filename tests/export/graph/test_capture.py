"""Capturing: one to one with PyTorch, or an error that names what is in the way."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load as load_safetensors
from torch import Tensor, nn

from tests.support import toys
from tests.support.cases import Made, close, run_exact
from toolchain.bundle.linkage import FORMS, Linkage
from toolchain.core.errors import AttachError, CaptureError
from toolchain.device.runtime.ort.backend import LinkedModel
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph import capture as capture_file
from toolchain.export.graph import store
from toolchain.export.graph.capture import capture
from toolchain.export.graph.link import link
from toolchain.export.graph.names import BACKBONE
from toolchain.export.graph.split import split
from toolchain.training.adapt.attached import AttachedModel, arrays, attach, domain_state


class Untouched(toys.Residual):
    """Returns its input as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Doubling(toys.Residual):
    """Returns another dtype than it takes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class Undoing(nn.Module):
    """Takes the dtype back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class Flattening(toys.Residual):
    """Returns another rank than it takes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(2)


class Spreading(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 8, 8, 8)


def net(*blocks: nn.Module, names: list[str] | None = None, **options: Any) -> AttachedModel:
    backbone = toys.Net(toys.stem(8), list(blocks), 8).eval()
    targets = names or ["blocks.0"]
    return attach(
        backbone, classes=3, input_shape=(3, 8, 8), blocks=targets, rank=4, pool=2, **options
    )


def test_the_graph_answers_as_pytorch_does(made: Made) -> None:
    """Law: before any folding, every named cut point is PyTorch's tensor."""
    images = made.case.images(3, seed=2)
    outputs = run_exact(store.from_bytes(made.raw, what="captured"), images)
    with torch.no_grad():
        trace = made.model.trace(images)
    assert close(outputs["logits"], trace.logits)
    for kind, values in (
        ("gate", trace.gates),
        ("adaptor", trace.corrections),
        ("out", trace.results),
    ):
        for site, value in values.items():
            if f"{kind}.{site}" in outputs:
                assert close(outputs[f"{kind}.{site}"], value), (kind, site)
    for cut, (site, value) in zip(made.captured.cuts, trace.outputs.items(), strict=True):
        assert cut.site == site
        assert close(outputs[cut.output], value), site


def test_every_tensor_keeps_its_name_and_bytes(made: Made) -> None:
    """Law: initializers are the state dict's tensors, one to one, never renamed or merged."""
    initializers = store.from_bytes(made.raw, what="captured").graph.initializers
    slots = arrays(domain_state(made.model))
    frozen = {BACKBONE + n: t.numpy() for n, t in made.model.backbone.state_dict().items()}
    for name in initializers:
        assert name in slots or name in frozen or "." not in name, name
    for name, array in slots.items():
        value = initializers[name].const_value
        assert value is not None
        assert np.array_equal(value.numpy(), array), name


def test_cuts_tell_what_attach_knows(made: Made) -> None:
    for cut, (name, site) in zip(made.captured.cuts, made.model.anatomy.named_sites(), strict=True):
        assert (cut.site, cut.module, cut.layout) == (name, site.name, site.layout)
        assert (cut.in_shape, cut.out_shape, cut.flops) == (
            site.in_shape,
            site.out_shape,
            site.flops,
        )
        assert cut.gateable == site.gateable


def test_capture_is_silent_and_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    """No line of the exporter reaches the user; its logger's level stays; eval mode rules."""
    model = net(toys.Residual(8, 8))
    model.train()
    logger = logging.getLogger("torch.onnx")
    level, hooks = logger.level, sum(len(m._forward_hooks) for m in model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured = capture(model)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert logger.level == level
    assert hooks == sum(len(m._forward_hooks) for m in model.modules())
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert close(run_exact(captured.model, images)["logits"], model.train(False)(images))


@pytest.mark.parametrize(
    ("block", "back", "told"),
    [
        (Doubling, Undoing, r"block 'blocks\.0' takes torch\.float32 and returns torch\.float64"),
        (Flattening, Spreading, r"block 'blocks\.0' cannot take an adaptor[\s\S]*same rank"),
    ],
)
def test_branches_that_differ_are_named_before_any_graph_is_made(
    block: Any, back: Any, told: Any
) -> None:
    """A closed gate passes the input on, so a block's dtype and rank must be its input's."""
    with pytest.raises(AttachError, match=told):
        net(block(8, 8), back())


def test_a_block_that_returns_its_input_links_all_the_same() -> None:
    """A block switched off in evaluation has no weights of its own; its gate changes nothing."""
    model = toys.scrambled(net(Untouched(8, 8)))
    halves = split(model)
    assert halves.cuts[0].input == halves.cuts[0].output
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model(images)
    constants = load_safetensors(halves.slots_data)
    backbone = load_safetensors(halves.weights_data)
    for form in FORMS:
        graph = store.to_bytes(link(halves, Linkage("static", form)))
        session = Session(graph, constants={**constants, **backbone})
        assert close(LinkedModel(session).run(images.numpy(), {}).logits, want), form


def test_an_exporter_that_alters_a_tensor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: names and values are compared with PyTorch, whatever exporter there will be."""
    export = capture_file._translated

    def wrong(*args: Any) -> ir.Model:
        model: ir.Model = export(*args)
        name = next(n for n in model.graph.initializers if n.endswith("blocks.0.conv2.weight"))
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(2), name=name)
        return model

    monkeypatch.setattr(capture_file, "_translated", wrong)
    with pytest.raises(CaptureError, match=r"'backbone\.blocks\.0\.conv2\.weight' differs"):
        capture(net(toys.Residual(8, 8)))


def test_a_slot_that_changes_nothing_is_named() -> None:
    """A parameter that no output needs would be a slot that cannot be swapped."""
    model = net(toys.Residual(8, 8))
    model.domain["block00"].register_parameter("idle", nn.Parameter(torch.zeros(2)))
    with pytest.raises(CaptureError, match=r"slot 'block00\.idle' did not reach the graph"):
        capture(model)


class Middling(toys.Residual):
    """The median has no translation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x.median(dim=3, keepdim=True).values


def test_an_operator_without_a_translation_is_named() -> None:
    net = toys.Net(nn.Conv2d(3, 8, 3, 2, 1), [Middling(8, 8)], 8).eval()
    with pytest.raises(CaptureError, match=r"has no ONNX for the operator aten\.median") as caught:
        capture(attach(net, classes=3, input_shape=(3, 8, 8)))
    assert caught.value.fix == "write it with other operators"
