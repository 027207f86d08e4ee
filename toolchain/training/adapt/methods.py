"""The methods: what each of them learns, and where it comes from.

Rules of this file: one registry, one function per method. A method only says which *parts* a domain
has (adaptors and gates at blocks, overrides of the backbone's tensors) and how its norms behave
while it trains. Attaching, the loop, memory and export are the same for all. It does not choose
sparse's channels (``sparse``) and trains nothing.

To add a method: its name and options in ``recipe.spec``, its function and its row of ``REGISTRY``
here. A method that first searches for what to update gives its row ``by_size``, too, and enters
``loop.models.SEARCHES``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from toolchain.core.errors import AttachError
from toolchain.recipe import METHOD_OPTIONS, AdaptorOptions
from toolchain.training.adapt import sparse
from toolchain.training.adapt.blocks import Anatomy
from toolchain.training.adapt.overrides import (
    BinaryMask,
    Override,
    ParallelAdapter,
    Replacement,
    Selection,
    SeriesAdapter,
    SparseUpdate,
)
from toolchain.training.lean.options import Smooth

# A private name of torch, but the only base that all its BatchNorms share.
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# What a bundle holds, as docs/methods.md says it.
_SLOTS = "A bundle holds its slots; domains of equal options share one session."
_MASKS = "A bundle holds one bit per weight; a device keeps a session of its own."
_TENSORS = "A bundle holds the tensors that differ; a device keeps a session of its own."
_WHOLE = "Not slots on a frozen backbone: a bundle holds the whole model."

BySize = Callable[[nn.Module, Anatomy, AdaptorOptions], Selection]


@dataclass(frozen=True, slots=True)
class MethodInputs:
    """What a method builds a domain for: the backbone, its anatomy, options, sparse's selection."""

    backbone: nn.Module
    anatomy: Anatomy
    options: AdaptorOptions
    selection: Selection

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the backbone's modules with their names, the classifier left out."""
        for name, module in self.backbone.named_modules():
            if name != self.anatomy.head:
                yield name, module


@dataclass(frozen=True, slots=True)
class DomainParts:
    """What a domain consists of beside its head.

    ``overrides``: by the backbone's tensor names. ``adaptors``: whether blocks have them, with
    ``attention`` and ``gates``. ``batch_statistics``: while it trains, BatchNorm uses the batch's
    statistics, and the domain keeps running ones of its own.
    """

    overrides: Mapping[str, Override] = field(default_factory=dict)
    adaptors: bool = False
    attention: bool = False
    gates: bool = False
    batch_statistics: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """One way to adapt a backbone to a domain.

    ``in_bundle``: the sentence that says what a bundle holds. ``lr_factor`` scales the recipe's
    learning rate, which is given for additive adaptors. It is the best of 0.1, 0.3, 1, 3 and 10 on
    pictures held out of training (``python -m benchmarks.rates``); fine-tuning's is the best on a
    net of ImageNet, whose weights a rate for adaptors destroys. ``lean``: whether lean layers
    stand in while it trains; they gain nothing where every layer is trained. ``smooth``: what
    activations with a smooth derivative keep then. ``fitted_head``: whether training starts from
    the head-only baseline's head, or from zero. A fitted head knows the training pictures by heart,
    and what stands before it then learns little. ``by_size``: a selection that needs no data, for
    tables of memory; None for a method without a search.
    """

    name: str
    parts: Callable[[MethodInputs], DomainParts]
    in_bundle: str = _TENSORS
    lr_factor: float = 1.0
    lean: bool = True
    smooth: Smooth = "exact"
    fitted_head: bool = True
    by_size: BySize | None = None

    @property
    def about(self) -> str:
        """The paragraph that says what it does and where it comes from."""
        return inspect.getdoc(self.parts) or ""


def _head(_: MethodInputs) -> DomainParts:
    """Train the classifier alone on frozen features: the baseline that costs nothing."""
    return DomainParts()


def _da3(_: MethodInputs) -> DomainParts:
    """Learn an additive adaptor and a dynamic gate per block (Yang, Rakin, Fan, CVPR-W 2022).

    The adaptor's correction is added to the block's map, so training keeps no activation of the
    backbone for it. The gate skips the block for samples that do not need it, in training too.
    Layers and loss are a documented reconstruction (docs/method.md).
    """
    return DomainParts(adaptors=True, gates=True)


def _da2(_: MethodInputs) -> DomainParts:
    """Learn residual attention adaptors (DA2, arXiv 2012.01362v1): da3's first form, no gate."""
    return DomainParts(adaptors=True, attention=True)


def _finetune(inputs: MethodInputs) -> DomainParts:
    """Train every tensor, norms with the batch's statistics: the reference for accuracy and cost.

    Statistics start as those of the domain's pictures, and the head is fitted to them. Its layers
    stay PyTorch's own. A trained convolution needs its whole input, and lean layers could drop
    nothing else.
    """
    return DomainParts(
        overrides={**_all(inputs, lambda _, __: True), **_statistics(inputs)},
        batch_statistics=True,
    )


def _bn(inputs: MethodInputs) -> DomainParts:
    """Train scale, shift and statistics of the norms (Rebuffi et al., NeurIPS 2017; Bilen 2017).

    The smallest change of a whole backbone in multi-domain learning. Training keeps the input of
    every norm.
    """
    return DomainParts(overrides=_some(_norms(inputs), "norm"), batch_statistics=True)


def _bias(inputs: MethodInputs) -> DomainParts:
    """Train the biases of convolutions, linear layers and norms (TinyTL-B, Cai et al., 2020).

    A bias is additive: its gradient needs no activation (NeurIPS 2020, section 3.1).
    """
    return DomainParts(overrides=_some(_all(inputs, lambda _, leaf: leaf == "bias"), "bias"))


def _lite_residual(inputs: MethodInputs) -> DomainParts:
    """Train biases and lite residual modules (TinyTL-L+B, Cai et al., NeurIPS 2020, section 3.2).

    The lite residual is the same pooled adaptor as da3's, without a gate.
    """
    return DomainParts(overrides=_bias(inputs).overrides, adaptors=True)


def _series(inputs: MethodInputs) -> DomainParts:
    """Put a 1x1 adapter after every spatial convolution (Rebuffi et al., NeurIPS 2017).

    The domain has norms of its own. The adapter multiplies activations, so training keeps each.
    """
    overrides: dict[str, Override] = {
        f"{name}.weight": SeriesAdapter(conv.weight, conv.groups) for name, conv in _spatial(inputs)
    }
    return DomainParts(overrides={**overrides, **_norms(inputs)}, batch_statistics=True)


def _parallel(inputs: MethodInputs) -> DomainParts:
    """Put a 1x1 adapter beside every spatial convolution (Rebuffi et al., CVPR 2018).

    The domain has norms of its own. The adapter multiplies activations, so training keeps each.
    """
    overrides: dict[str, Override] = {
        f"{name}.weight": ParallelAdapter(conv.weight) for name, conv in _spatial(inputs)
    }
    return DomainParts(overrides={**overrides, **_norms(inputs)}, batch_statistics=True)


def _piggyback(inputs: MethodInputs) -> DomainParts:
    """Learn one binary mask per frozen weight (Piggyback, Mallya et al., ECCV 2018).

    It masks kernels and matrices. Norms and biases stay. A bundle stores one bit per weight.
    """
    overrides: dict[str, Override] = {
        f"{name}.weight": BinaryMask(module.weight)
        for name, module in inputs.layers()
        if isinstance(module, (*CONVS, nn.Linear))
    }
    return DomainParts(overrides=_some(overrides, "weight"))


def _sparse(inputs: MethodInputs) -> DomainParts:
    """Update chosen channels of chosen kernels, and biases from the first of them on.

    On-device training under 256 KB (Lin et al., NeurIPS 2022, section 3.2). A search chooses layers
    and channels by their measured contribution, within ``update_kib`` of kept maps per picture in
    float32. The optimiser's state comes on top of that. ``da3 train`` measures and chooses by
    itself. Your own loop calls ``loop.contribution.search`` and passes ``attach(selection=...)``.
    Without a selection it trains only the last block's biases.
    """
    modules = dict(inputs.layers())
    overrides: dict[str, Override] = {}
    for name, channels in inputs.selection.items():
        conv = modules.get(name.removesuffix(".weight"))
        if not isinstance(conv, nn.Conv2d) or conv.groups not in (1, conv.in_channels):
            raise AttachError(
                f"expected kernels of plain or depthwise convolutions to update, got {name!r}",
                fix="take the selection from loop.contribution.search",
            )
        overrides[name] = SparseUpdate(conv.weight, tuple(channels), depthwise=conv.groups > 1)
    first = _first(inputs, overrides)
    biases = _all(inputs, lambda _, leaf: leaf == "bias")
    order = list(modules)
    # The gradient passes through these layers anyway, and a bias keeps nothing: it is free.
    overrides |= {n: v for n, v in biases.items() if order.index(n.rpartition(".")[0]) >= first}
    return DomainParts(overrides=overrides)


def _sparse_by_size(backbone: nn.Module, anatomy: Anatomy, options: AdaptorOptions) -> Selection:
    return sparse.by_size(backbone, anatomy, options.update_kib)


def _mobiletl(inputs: MethodInputs) -> DomainParts:
    """Train the last blocks, of their norms the shifts alone (MobileTL, Chiang et al., AAAI 2023).

    With lean layers, smooth activations (h-swish, SiLU, GELU) pass their gradient through a binary
    mask in place of the derivative. That is MobileTL's approximation.
    """
    blocks = [site.name for site in inputs.anatomy.sites][-inputs.options.last :]
    inside = tuple(f"{name}." for name in blocks)
    norms = {name for name, module in inputs.layers() if isinstance(module, NORMS)}
    overrides = {
        name: override
        for name, override in _all(inputs, lambda _, __: True).items()
        if name.startswith(inside)
        # A scale's gradient would keep the norm's input; a shift's needs none.
        and not (name.rpartition(".")[0] in norms and name.endswith(".weight"))
    }
    return DomainParts(overrides=overrides)


def _all(inputs: MethodInputs, takes: Callable[[nn.Module, str], bool]) -> dict[str, Override]:
    """Return a replacement of every parameter whose module and leaf name ``takes`` accepts."""
    return {
        f"{name}.{leaf}" if name else leaf: Replacement(parameter)
        for name, module in inputs.layers()
        for leaf, parameter in module.named_parameters(recurse=False)
        if takes(module, leaf)
    }


def _statistics(inputs: MethodInputs) -> dict[str, Override]:
    """Return replacements of running statistics: training moves them, it does not learn them."""
    return {
        f"{name}.{leaf}": Replacement(buffer, learned=False)
        for name, module in inputs.layers()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for leaf, buffer in module.named_buffers(recurse=False)
        if buffer is not None
    }


def _norms(inputs: MethodInputs) -> dict[str, Override]:
    norms = _all(inputs, lambda module, _: isinstance(module, NORMS))
    return {**norms, **_statistics(inputs)}


def _spatial(inputs: MethodInputs) -> list[tuple[str, nn.Conv2d]]:
    """Return the convolutions into whose kernel a 1x1 adapter can be folded."""
    convs = [
        (name, module)
        for name, module in inputs.layers()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 and _centred(module)
    ]
    # The stem sees pictures, not features: the papers leave it alone.
    convs = [(name, conv) for name, conv in convs if conv.in_channels > 3]
    if not convs:
        raise AttachError(
            "expected convolutions with a spatial kernel for residual adapters, got none",
            fix="use the method da3 or lite_residual",
        )
    return convs


def _centred(conv: nn.Conv2d) -> bool:
    """Tell whether the kernel's centre sees the pixel that a 1x1 adapter beside it would see."""
    sides = zip(conv.kernel_size, conv.padding, conv.dilation, strict=False)
    return not isinstance(conv.padding, str) and all(
        k % 2 == 1 and p == d * (k // 2) for k, p, d in sides
    )


def _first(inputs: MethodInputs, overrides: Mapping[str, Override]) -> int:
    """Return the place, in the order of modules, from which on biases are trained."""
    order = [name for name, _ in inputs.layers()]
    # Without a selection: from the last block on.
    if not overrides:
        return order.index(inputs.anatomy.sites[-1].name)
    return min(order.index(name.removesuffix(".weight")) for name in overrides)


def _some(overrides: dict[str, Override], what: str) -> dict[str, Override]:
    """Return ``overrides``; raise AttachError where the backbone has none to take."""
    if not overrides:
        raise AttachError(
            f"expected a backbone with a {what} to train, got none", fix="use the method da3"
        )
    return overrides


REGISTRY: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("da3", _da3, _SLOTS, fitted_head=False),
        Method("da2", _da2, _SLOTS, fitted_head=False),
        Method("head", _head, _SLOTS),
        Method("finetune", _finetune, _WHOLE, lr_factor=0.1, lean=False),
        Method("bn", _bn, lr_factor=10.0),
        Method("bias", _bias, lr_factor=10.0, fitted_head=False),
        Method("lite_residual", _lite_residual, lr_factor=10.0, fitted_head=False),
        Method("series", _series),
        Method("parallel", _parallel, lr_factor=3.0),
        Method("piggyback", _piggyback, _MASKS, lr_factor=0.1),
        Method("sparse", _sparse, by_size=_sparse_by_size),
        Method("mobiletl", _mobiletl, lr_factor=0.3, smooth="mask"),
    )
}
"""Every method by its name in recipes, in the order in which they are shown."""

SLOTS_ALONE = tuple(name for name, method in REGISTRY.items() if method.in_bundle == _SLOTS)
"""Methods that leave every tensor of the backbone as it is."""


def page() -> str:
    """Return docs/methods.md: every method with its paragraph, options and place in a bundle."""
    lines = [
        "# Methods",
        "",
        "`method:` in a recipe, `da3 train --method NAME`, `attach(..., method=NAME)`. One loop",
        "trains them all. This page is generated from `toolchain/training/adapt/methods.py`. What",
        "each keeps in memory and reaches in accuracy stands in [results.md](results.md).",
    ]
    for name, method in REGISTRY.items():
        options = ", ".join(f"`{option}`" for option in METHOD_OPTIONS[name]) or "none"
        lines += ["", f"## `{name}`", "", method.about]
        lines += ["", f"Options: {options}.", method.in_bundle]
        if method.lr_factor != 1:
            lines += [f"Its tensors learn at {method.lr_factor:g} times the recipe's rate."]
    return "\n".join(lines) + "\n"
