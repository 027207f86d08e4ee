"""The methods: what each of them learns, and where it comes from.

Rules of this file: one registry, one function per method; a method only says which *parts* a domain
has (adaptors and gates at blocks, versions of the backbone's tensors) and how its norms behave
while it trains. Attaching, the loop, memory and export are the same for all. It does not choose
sparse's channels (``sparse``) and trains nothing.

``lr_factor`` scales the recipe's learning rate, which is given for additive adaptors: the best of
0.1, 0.3, 1, 3 and 10 on pictures held out of training (``python -m benchmarks.rates``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from toolchain.core.errors import AttachError
from toolchain.recipe import METHOD_OPTIONS, AdaptorOptions
from toolchain.training.adapt.blocks import Anatomy
from toolchain.training.adapt.overrides import (
    BinaryMask,
    Override,
    ParallelAdapter,
    Replacement,
    SeriesAdapter,
    SparseUpdate,
)
from toolchain.training.lean.options import Smooth

Selection = Mapping[str, tuple[int, ...]]
"""What sparse updates: input channels by the kernel's name."""

SLOTS_ALONE = ("da3", "da2", "head")
"""Methods that leave every tensor of the backbone as it is."""

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True)
class MethodInput:
    """What a method is asked about: a backbone, its anatomy, the options and sparse's selection."""

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

    ``own``: versions by the backbone's tensor names. ``adaptors``: at blocks, with ``attention``
    and ``gates``. ``batch_statistics``: BatchNorm uses those of the batch while it trains, and the
    domain keeps running ones of its own.
    """

    overrides: Mapping[str, Override] = field(default_factory=dict)
    adaptors: bool = False
    attention: bool = False
    gates: bool = False
    batch_statistics: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """One way to adapt a backbone to a domain.

    ``lean``: whether frozen layers are replaced while it trains; not where all are trained.
    ``smooth``: what activations with a smooth derivative keep then.
    """

    name: str
    parts: Callable[[MethodInput], DomainParts]
    lr_factor: float = 1.0
    lean: bool = True
    smooth: Smooth = "exact"

    @property
    def about(self) -> str:
        """The paragraph that says what it does and where it comes from."""
        return inspect.getdoc(self.parts) or ""


def _head(_: MethodInput) -> DomainParts:
    """Train the classifier alone on frozen features: the baseline that costs nothing."""
    return DomainParts()


def _da3(_: MethodInput) -> DomainParts:
    """Learn an additive adaptor and a dynamic gate per block (Yang, Rakin, Fan, CVPR-W 2022).

    The adaptor's correction is added to the block's map, so no activation of the backbone is kept
    for it; the gate skips the block for samples that do not need it, in training too. Layers and
    loss are a documented reconstruction (docs/method.md).
    """
    return DomainParts(adaptors=True, gates=True)


def _da2(_: MethodInput) -> DomainParts:
    """Learn residual attention adaptors (DA2, arXiv 2012.01362v1): da3's first form, no gate."""
    return DomainParts(adaptors=True, attention=True)


def _finetune(subject: MethodInput) -> DomainParts:
    """Train every tensor, norms with the batch's statistics: the reference for accuracy and cost.

    Its layers stay PyTorch's own: a trained convolution needs its input whole, and nothing that is
    kept beside it could be dropped.
    """
    return DomainParts(
        overrides={**_all(subject, lambda _, __: True), **_statistics(subject)},
        batch_statistics=True,
    )


def _bn(subject: MethodInput) -> DomainParts:
    """Train scale, shift and statistics of the norms (Rebuffi et al., NeurIPS 2017; Bilen 2017).

    Multi-domain learning's smallest change of a whole backbone; every norm keeps its input.
    """
    return DomainParts(overrides=_some(_norms(subject), "norm"), batch_statistics=True)


def _bias(subject: MethodInput) -> DomainParts:
    """Train the biases of convolutions, linear layers and norms (TinyTL-B, Cai et al., 2020).

    A bias is additive: its gradient needs no activation (NeurIPS 2020, section 3.1).
    """
    return DomainParts(overrides=_some(_all(subject, lambda _, leaf: leaf == "bias"), "bias"))


def _lite_residual(subject: MethodInput) -> DomainParts:
    """Train biases and lite residual modules (TinyTL-L+B, Cai et al., NeurIPS 2020, section 3.2).

    The lite residual is the same pooled adaptor as da3's, without a gate.
    """
    return DomainParts(overrides=_bias(subject).overrides, adaptors=True)


def _series(subject: MethodInput) -> DomainParts:
    """Put a 1x1 adapter after every spatial convolution (Rebuffi et al., NeurIPS 2017).

    With norms of the domain's own. The adapter multiplies activations, so each is kept.
    """
    own: dict[str, Override] = {
        f"{name}.weight": SeriesAdapter(conv.weight, conv.groups)
        for name, conv in _spatial(subject)
    }
    return DomainParts(overrides={**own, **_norms(subject)}, batch_statistics=True)


def _parallel(subject: MethodInput) -> DomainParts:
    """Put a 1x1 adapter beside every spatial convolution (Rebuffi et al., CVPR 2018).

    With norms of the domain's own. The adapter multiplies activations, so each is kept.
    """
    own: dict[str, Override] = {
        f"{name}.weight": ParallelAdapter(conv.weight) for name, conv in _spatial(subject)
    }
    return DomainParts(overrides={**own, **_norms(subject)}, batch_statistics=True)


def _piggyback(subject: MethodInput) -> DomainParts:
    """Learn one binary mask per frozen weight (Piggyback, Mallya et al., ECCV 2018).

    Kernels and matrices are masked, norms and biases stay; a bundle stores one bit per weight.
    """
    own: dict[str, Override] = {
        f"{name}.weight": BinaryMask(module.weight)
        for name, module in subject.layers()
        if isinstance(module, (*CONVS, nn.Linear))
    }
    return DomainParts(overrides=_some(own, "weight"))


def _sparse(subject: MethodInput) -> DomainParts:
    """Update chosen channels of chosen kernels, and biases from the first of them on.

    On-device training under 256 KB (Lin et al., NeurIPS 2022, section 3.2): layers and channels
    are chosen by their measured contribution within ``update_kib`` of kept maps, per picture and
    in float32; the optimiser's state comes on top of that. ``da3 train`` measures and chooses by
    itself, your own loop calls ``loop.contribution.search`` and passes ``attach(selection=...)``;
    without one only the last block's biases are trained.
    """
    modules = dict(subject.layers())
    own: dict[str, Override] = {}
    for name, channels in subject.selection.items():
        conv = modules.get(name.removesuffix(".weight"))
        if not isinstance(conv, nn.Conv2d) or conv.groups not in (1, conv.in_channels):
            raise AttachError(
                f"expected kernels of plain or depthwise convolutions to update, got {name!r}",
                fix="take the selection from loop.contribution.search",
            )
        own[name] = SparseUpdate(conv.weight, tuple(channels), depthwise=conv.groups > 1)
    first = _first(subject, own)
    biases = _all(subject, lambda _, leaf: leaf == "bias")
    order = list(modules)
    own |= {n: v for n, v in biases.items() if order.index(n.rpartition(".")[0]) >= first}
    return DomainParts(overrides=own)


def _mobiletl(subject: MethodInput) -> DomainParts:
    """Train the last blocks, of their norms the shifts alone (MobileTL, Chiang et al., AAAI 2023).

    With lean layers, activations other than ReLU's pass their gradient through a binary mask in
    place of the derivative, which is MobileTL's approximation.
    """
    blocks = [site.name for site in subject.anatomy.sites][-subject.options.last :]
    inside = tuple(f"{name}." for name in blocks)
    norms = {name for name, module in subject.layers() if isinstance(module, NORMS)}
    own = {
        name: version
        for name, version in _all(subject, lambda _, __: True).items()
        if name.startswith(inside)
        and not (name.rpartition(".")[0] in norms and name.endswith(".weight"))
    }
    return DomainParts(overrides=own)


def _all(subject: MethodInput, wanted: Callable[[nn.Module, str], bool]) -> dict[str, Override]:
    """Return learned versions of the parameters whose module and leaf name are ``wanted``."""
    return {
        f"{name}.{leaf}" if name else leaf: Replacement(parameter)
        for name, module in subject.layers()
        for leaf, parameter in module.named_parameters(recurse=False)
        if wanted(module, leaf)
    }


def _statistics(subject: MethodInput) -> dict[str, Override]:
    """Return the running statistics as the domain's own; they are moved, not learned."""
    return {
        f"{name}.{leaf}": Replacement(buffer, learned=False)
        for name, module in subject.layers()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for leaf, buffer in module.named_buffers(recurse=False)
        if buffer is not None
    }


def _norms(subject: MethodInput) -> dict[str, Override]:
    norms = _all(subject, lambda module, _: isinstance(module, NORMS))
    return {**norms, **_statistics(subject)}


def _spatial(subject: MethodInput) -> list[tuple[str, nn.Conv2d]]:
    """Return the convolutions into whose kernel a 1x1 adapter can be folded."""
    found = [
        (name, module)
        for name, module in subject.layers()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 and _centred(module)
    ]
    # The stem sees pictures, not features: the papers leave it alone.
    found = [(name, conv) for name, conv in found if conv.in_channels > 3]
    if not found:
        raise AttachError(
            "expected convolutions with a spatial kernel for residual adapters, got none",
            fix="use the method da3 or lite_residual",
        )
    return found


def _centred(conv: nn.Conv2d) -> bool:
    sides = zip(conv.kernel_size, conv.padding, conv.dilation, strict=False)
    return not isinstance(conv.padding, str) and all(
        k % 2 == 1 and p == d * (k // 2) for k, p, d in sides
    )


def _first(subject: MethodInput, own: Mapping[str, Override]) -> int:
    """Return the place, in the order of modules, from which on biases are trained."""
    order = [name for name, _ in subject.layers()]
    if not own:
        return order.index(subject.anatomy.sites[-1].name)
    return min(order.index(name.removesuffix(".weight")) for name in own)


def _some(own: dict[str, Override], what: str) -> dict[str, Override]:
    if not own:
        raise AttachError(
            f"expected a backbone with a {what} to train, got none", fix="use the method da3"
        )
    return own


REGISTRY: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("da3", _da3),
        Method("da2", _da2),
        Method("head", _head),
        Method("finetune", _finetune, lean=False),
        Method("bn", _bn, lr_factor=10.0),
        Method("bias", _bias, lr_factor=10.0),
        Method("lite_residual", _lite_residual, lr_factor=10.0),
        Method("series", _series),
        Method("parallel", _parallel, lr_factor=3.0),
        Method("piggyback", _piggyback, lr_factor=0.1),
        Method("sparse", _sparse),
        Method("mobiletl", _mobiletl, lr_factor=0.3, smooth="mask"),
    )
}
"""Every method by its name in recipes, in the order in which they are shown."""


def page() -> str:
    """Return docs/methods.md: every method with its paragraph, options and place in a bundle."""
    lines = [
        "# Methods",
        "",
        "`method:` in a recipe, `da3 train --method NAME`, `attach(..., method=NAME)`. One loop",
        "trains them all. This page is generated from `training/adapt/methods.py`; what each",
        "keeps in memory and reaches in accuracy stands in [results.md](results.md).",
    ]
    for name, method in REGISTRY.items():
        options = ", ".join(f"`{option}`" for option in METHOD_OPTIONS[name]) or "none"
        lines += ["", f"## `{name}`", "", method.about]
        lines += ["", f"Options: {options}.", _travels(name)]
        if method.lr_factor != 1:
            lines += [f"Its tensors learn at {method.lr_factor:g} times the recipe's rate."]
    return "\n".join(lines) + "\n"


def _travels(name: str) -> str:
    if name in SLOTS_ALONE:
        return "A bundle holds its slots; domains share one session of the backbone."
    if name == "piggyback":
        return "A bundle holds one bit per weight; a device keeps a session of its own."
    if name == "finetune":
        return "Not slots on a frozen backbone: a bundle holds the whole model."
    return "A bundle holds the tensors that differ; a device keeps a session of its own."
