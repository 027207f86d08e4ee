"""Find the blocks of a backbone: the places where an adaptor joins and a gate may skip.

Rules of this file: it looks at structure only (containers, calls, tensors), never at class names,
and imports no model zoo. It runs the backbone on one picture and changes nothing in it. It does not
decide what an adaptor looks like, and it attaches nothing.

A *block* is a module that takes one map and returns one map of the same rank, whose first dimension
is the batch, holds at least two weighted layers, and is a child of a ``Sequential`` or
``ModuleList``. A module that only returns the output of one of its own blocks is a container, not a
block. Where a gate could not skip a block, and finer blocks inside can be skipped, those count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from toolchain.core.errors import AttachError, first_few
from toolchain.training.adapt.dryrun import (
    DryRun,
    ModuleCall,
    dry_run,
    output_tensor,
    runs_channels_last,
)

Layout = Literal["NCHW", "NHWC", "NLC", "NCL"]
CONTAINERS = (nn.Sequential, nn.ModuleList)
LEAST_SHARE = 0.5
"""Of a stage's multiply-adds: what blocks inside it have to hold to stand for it."""
_SUGGESTED = 64
"""How many names a message suggests; a deep net has hundreds."""


@dataclass(frozen=True, slots=True)
class Site:
    """One block of a backbone, with what the dry run told of it.

    ``in_shape`` and ``out_shape`` are without the batch dimension. ``flops`` counts multiply-adds
    for one sample. ``gateable``: input and output have one shape, so a closed gate can pass the
    input on.
    """

    name: str
    layout: Layout
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    flops: int

    @property
    def gateable(self) -> bool:
        """Whether a closed gate can pass the block's input on in place of its output."""
        return self.in_shape == self.out_shape


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What dry runs tell of a backbone.

    ``head``: name of the classifier that a domain's head replaces, or None when the backbone
    returns features. ``features``: width of the head's input. ``flops``: multiply-adds of the whole
    backbone for one sample, without the classifier. ``channels_last``: whether it also runs on
    pictures whose channels lie last. ``entangled``: by name, the blocks that no gate can skip, as
    others read what is made inside, or they read what others made of the picture; says who.
    """

    sites: tuple[Site, ...]
    head: str | None
    features: int
    flops: int
    input_shape: tuple[int, ...]
    channels_last: bool
    entangled: Mapping[str, str] = field(default_factory=dict)

    def named_sites(self) -> Iterator[tuple[str, Site]]:
        """Yield every block with its short name in slots and cut points: ``block03``."""
        for index, site in enumerate(self.sites):
            yield f"block{index:02d}", site


def examine(
    backbone: nn.Module,
    input_shape: Sequence[int],
    *,
    blocks: Iterable[str] | None = None,
    head: str | None = None,
) -> Anatomy:
    """Run ``backbone`` once on zeros ``[1, *input_shape]`` and describe its blocks and classifier.

    ``blocks`` and ``head`` name modules where the structure does not tell; an empty ``head`` says
    that the backbone returns features. Raises AttachError; the fix says what would help.
    """
    named = None if blocks is None else _named(blocks)
    run = dry_run(backbone, tuple(input_shape))
    names = _block_names(backbone, run) if named is None else _known(backbone, named)
    if not names:
        raise AttachError(
            f"found no blocks in {type(backbone).__name__}: no module inside a Sequential or "
            "ModuleList takes and returns one map and holds two weighted layers",
            fix=_suggestion(backbone, run),
        )
    # Adaptors, gates and graphs follow the order in which the blocks run.
    names.sort(key=lambda name: run.calls[name].order)
    # An empty head is the caller's way to say that the backbone returns features.
    head = _classifier_name(backbone, run) if head is None else head or None
    sites = tuple(_site(backbone, name, run) for name in names)
    features = _features(backbone, head, run)
    classifier = run.flops[head] if head else 0
    entangled = {name: text for name in names if (text := _entanglement(run, name))}
    return Anatomy(
        sites=sites,
        head=head,
        features=features,
        flops=run.flops[""] - classifier,
        input_shape=tuple(input_shape),
        channels_last=runs_channels_last(backbone, tuple(input_shape)),
        entangled=entangled,
    )


def _known(backbone: nn.Module, names: list[str]) -> list[str]:
    """Return ``names``; raises AttachError for one that is no module of the backbone."""
    modules = dict(backbone.named_modules())
    for name in names:
        if name not in modules:
            raise AttachError(
                f"block {name!r} is not a module of {type(backbone).__name__}",
                fix=f"its parts are {', '.join(_parts(backbone))}",
            )
    return names


def _parts(backbone: nn.Module) -> Iterator[str]:
    """Yield the parts that may be named: of a list of parts its first and its last one."""
    for name, module in backbone.named_children():
        inside = list(module) if isinstance(module, nn.Sequential | nn.ModuleList) else []
        yield f"{name}.0 to {name}.{len(inside) - 1}" if len(inside) > 1 else name


def _named(blocks: object) -> list[str]:
    """Return the blocks named by hand: a list of names, none twice or inside another."""
    entries = list(blocks) if isinstance(blocks, Iterable) else [blocks]
    names = [name for name in entries if isinstance(name, str)]
    if isinstance(blocks, str) or len(names) < len(entries):
        raise AttachError(
            f"expected blocks as a list of module names, got {blocks!r}",
            fix="name them: attach(..., blocks=['layer1.0', 'layer1.1'])",
        )
    for index, inner in enumerate(names):
        for other, outer in enumerate(names):
            # With the dots, layer1.10 is not taken for a part of layer1.1.
            if index != other and f"{inner}.".startswith(f"{outer}."):
                raise AttachError(
                    f"blocks {outer!r} and {inner!r} overlap; expected each module once and none "
                    "inside another",
                    fix="leave one of them out of blocks=[...]",
                )
    return names


def _weighted(module: nn.Module) -> int:
    """Count the layers that hold a matrix or a kernel of their own."""
    # Scales of norms and biases are vectors, so they do not count.
    return sum(
        any(p.dim() >= 2 for p in layer.parameters(recurse=False)) for layer in module.modules()
    )


def _is_plain_container(module: nn.Module) -> bool:
    """Tell whether a module only holds its children or runs them in order: no own forward."""
    if isinstance(module, nn.Sequential):
        return type(module).forward is nn.Sequential.forward
    lists = isinstance(module, nn.ModuleList | nn.ModuleDict)
    return lists and type(module).forward is nn.Module.forward


def _is_map_to_map(call: ModuleCall) -> bool:
    return (
        # A gate decides once per forward, so a module that runs twice cannot be a block.
        call.count == 1
        and call.input is not None
        and call.output is not None
        and call.input.dim() == call.output.dim()
        and call.input.dim() in (3, 4)
        and call.input.is_floating_point()
    )


def _is_per_picture(call: ModuleCall) -> bool:
    """Tell whether the first dimension of a map is the batch: the dry run has one picture."""
    assert call.input is not None
    assert call.output is not None
    return call.input.shape[0] == call.output.shape[0] == 1


def _block_names(backbone: nn.Module, run: DryRun) -> list[str]:
    modules, calls = dict(backbone.named_modules()), run.calls
    # Only a child of a container is known to be one step of a chain: what comes out of it goes into
    # the next one, so a gate may pass its input on.
    candidates = [
        name
        for name, module in modules.items()
        if name
        and isinstance(modules[name.rpartition(".")[0]], CONTAINERS)
        and not _is_plain_container(module)
        and _weighted(module) >= 2
        and _is_map_to_map(calls[name])
        and _is_per_picture(calls[name])
    ]
    # A container with a forward of its own adds nothing around its last block.
    candidates = [
        name
        for name in candidates
        if not any(calls[other].output is calls[name].output for other in _inside(name, candidates))
    ]
    outer = [n for n in candidates if not _is_inside(n, candidates)]
    return _finest(outer, candidates, run)


def _inside(name: str, others: Iterable[str]) -> list[str]:
    return [other for other in others if other.startswith(f"{name}.")]


def _is_inside(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)


def _finest(names: list[str], candidates: list[str], run: DryRun) -> list[str]:
    """Return ``names``, those that no gate can skip replaced by blocks inside that can be skipped.

    A stage that makes its map smaller hides the blocks in it. Its neighbours in the same container
    are stages as well, so those are opened too.
    """
    finer: dict[str, list[str]] = {}
    for name in names:
        inner = _inside(name, candidates)
        outer = [n for n in inner if not _is_inside(n, inner)]
        parts = _finest(outer, candidates, run)
        skipped = sum(run.flops[p] for p in parts if _is_skippable(run, p))
        # A squeeze-and-excitation unit keeps its shape, too, and is no finer block.
        if skipped and skipped >= LEAST_SHARE * run.flops[name]:
            finer[name] = parts
    opened = {n.rpartition(".")[0] for n in finer if not _is_skippable(run, n)}
    return [
        part
        for name in names
        for part in (finer[name] if name in finer and name.rpartition(".")[0] in opened else [name])
    ]


def _is_skippable(run: DryRun, name: str) -> bool:
    """Tell whether a closed gate can pass the module's input on."""
    call = run.calls[name]
    assert call.input is not None
    assert call.output is not None
    return call.input.shape == call.output.shape and not _entanglement(run, name)


def _entanglement(run: DryRun, name: str) -> str:
    """Return why no gate can skip a block, with who reads what; empty where one can."""
    for read in run.leaks(name):
        return f"it makes a value besides its output, which {_who(read.reader)} reads"
    for read in run.strangers(name):
        made = f"which {_who(read.maker)} made" if read.value else "the picture itself"
        return f"it reads a value of each picture besides its input, {made}"
    return ""


def _who(path: tuple[str, ...]) -> str:
    return repr(path[-1]) if path and path[-1] else "the backbone's own forward"


def _suggestion(backbone: nn.Module, run: DryRun) -> str:
    """Return the fix for a backbone without blocks: names that can be used as they stand here."""
    names = _suggested(backbone, run)
    if not names:
        return (
            "no module of it can be named; where activations write in place, set inplace=False "
            "on them first"
        )
    shown = f"[{first_few([repr(name) for name in names], _SUGGESTED)}]"
    skippable = any(_is_skippable(run, name) for name in names)
    placement = "" if skippable else ", placement='all'"
    return f"name them: attach(..., blocks={shown}{placement}), or blocks: in a recipe"


def _suggested(backbone: nn.Module, run: DryRun) -> list[str]:
    """Return modules like blocks outside a container, else single layers; each can be named."""
    modules = {n: m for n, m in backbone.named_modules() if n and _is_map_to_map(run.calls[n])}
    outer: list[str] = []
    # Without any module of two weighted layers, those of one are still worth naming.
    for least in (2, 1):
        able = [
            n
            for n, m in modules.items()
            if not _is_plain_container(m)
            and _weighted(m) >= least
            and _can_be_named(backbone, n, run)
        ]
        outer = outer or [n for n in able if not _is_inside(n, able)]
    return outer


def _can_be_named(backbone: nn.Module, name: str, run: DryRun) -> bool:
    try:
        site = _site(backbone, name, run)
    except AttachError:
        return False
    return not (site.gateable and _entanglement(run, name))


def _classifier_name(backbone: nn.Module, run: DryRun) -> str | None:
    answer = output_tensor(run.output)
    if answer is None:
        raise AttachError(
            f"{type(backbone).__name__} returns {type(run.output).__name__}, expected a tensor",
            fix="wrap it in a module that returns the logits or the features",
        )
    modules = dict(backbone.named_modules())
    for name, call in run.calls.items():
        if isinstance(modules[name], nn.Linear) and call.output is answer:
            return name
        if _is_pixel_layer(modules[name], call) and _is_view(call.output, answer):
            return name
    if answer.dim() == 2 and not _ends_in_scores(modules, run, answer):
        return None
    raise AttachError(
        f"found no classifier in {type(backbone).__name__}: no Linear layer returns its answer "
        f"(shape {list(answer.shape)})",
        fix="name it: attach(..., head='classifier.1'), or head='' if the answer is features; a "
        "wrapper that returns pooled features helps where the classifier is no Linear layer",
    )


def _is_pixel_layer(module: nn.Module, call: ModuleCall) -> bool:
    """Tell whether a module is a convolution that acts as a Linear layer on pooled features."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and call.input is not None
        and call.input.shape[2:] == (1, 1)
    )


def _is_view(tensor: Tensor | None, answer: Tensor) -> bool:
    """Tell whether the backbone's answer is this tensor in another shape."""
    return (
        tensor is not None
        # A flatten behind the classifier makes another object on the same memory, so `is` would not
        # find it.
        and tensor.data_ptr() == answer.data_ptr()
        and tensor.numel() == answer.numel()
    )


def _ends_in_scores(modules: Mapping[str, nn.Module], run: DryRun, answer: Tensor) -> bool:
    """Tell whether a 2-d answer looks like the scores of a convolution used as a classifier."""
    ran = [n for n, m in modules.items() if run.calls[n].count and not any(m.children())]
    layers = [n for n in ran if _weighted(modules[n])]
    last = modules[max(layers, key=lambda name: run.calls[name].order)] if layers else None
    # Feature extractors end in a convolution without bias, as a norm follows it. In a transformer
    # that ends in features the only convolution is the first layer.
    return (
        isinstance(last, nn.Conv2d)
        and last.out_channels == answer.shape[1]
        and last.bias is not None
    )


def _features(backbone: nn.Module, head: str | None, run: DryRun) -> int:
    calls = run.calls
    if head is None:
        answer = output_tensor(run.output)
        if answer is None or answer.dim() != 2:
            got = type(run.output).__name__ if answer is None else f"shape {list(answer.shape)}"
            raise AttachError(
                f"expected features [1, width] from {type(backbone).__name__}, got {got}",
                fix="name its classifier, or wrap it in a module that returns pooled features",
            )
        return int(answer.shape[-1])
    module = dict(backbone.named_modules()).get(head)
    if not isinstance(module, nn.Linear) and not (module and _is_pixel_layer(module, calls[head])):
        raise AttachError(
            f"head {head!r} is {type(module).__name__ if module else 'not a module'}, "
            "expected a Linear layer (or a 1x1 convolution of one pixel)",
            fix="name the last Linear layer of the backbone",
        )
    if calls[head].count != 1:
        raise AttachError(
            f"head {head!r} ran {calls[head].count} times in one forward, expected once",
            fix="name the Linear layer that returns the logits",
        )
    x = calls[head].input
    assert x is not None
    return int(x.shape[-1] if isinstance(module, nn.Linear) else x.shape[1])


def _site(backbone: nn.Module, name: str, run: DryRun) -> Site:
    call = run.calls[name]
    if not _is_map_to_map(call):
        raise AttachError(
            f"block {name!r} cannot take an adaptor: it ran {call.count} times and maps "
            f"{_shape_text(call.input)} to {_shape_text(call.output)}; expected one run from one "
            "map to one map of the same rank (3 or 4 dimensions)",
            fix="name a block that is run once with one tensor",
        )
    if not _is_per_picture(call):
        raise AttachError(
            f"block {name!r} maps {_shape_text(call.input)} to {_shape_text(call.output)} for one "
            "picture: expected the batch as the first dimension, as a gate decides per picture",
            fix="name the block around it, or leave it out of blocks=[...]",
        )
    assert call.input is not None
    assert call.output is not None
    if call.input.dtype != call.output.dtype:
        raise AttachError(
            f"block {name!r} takes {call.input.dtype} and returns {call.output.dtype}; a closed "
            "gate passes the input on, so both must be equal",
            fix="cast inside the block, or leave it out of blocks=[...]",
        )
    _refuse_overwritten(name, call)
    return Site(
        name=name,
        layout=_layout(backbone, name, run.calls, call.input),
        in_shape=tuple(call.input.shape[1:]),
        out_shape=tuple(call.output.shape[1:]),
        flops=run.flops[name],
    )


def _refuse_overwritten(name: str, call: ModuleCall) -> None:
    """Refuse a block whose input or output is written to in place: a gate chooses between them."""
    for what, tensor, version in (
        ("input", call.input, call.input_version),
        ("output", call.output, call.output_version),
    ):
        if tensor is not None and tensor._version != version:
            raise AttachError(
                f"the {what} of block {name!r} is overwritten in place, so no gate and no adaptor "
                "can rely on it",
                fix="set inplace=False on the activations of the backbone, or name other blocks",
            )


def _shape_text(tensor: Tensor | None) -> str:
    return "no tensor" if tensor is None else str(list(tensor.shape))


def _layout(backbone: nn.Module, name: str, calls: Mapping[str, ModuleCall], x: Tensor) -> Layout:
    """Tell where the channels of the block's input ``x`` are, by the inputs of its layers.

    A convolution has its channels first: it sees the block's map either as it is or permuted. A
    Linear or LayerNorm whose input has the block's own shape works on channels that are last.
    """
    # A module in two places was noted under its first name: CoaT's blocks share a convolution.
    names = {module: first for first, module in backbone.named_modules()}
    for layer in backbone.get_submodule(name).modules():
        # The first layer that sees the whole map decides; later ones may see it reshaped.
        inner = calls[names[layer]].input
        if inner is None or inner.dim() != x.dim():
            continue
        layout = _row_layout(layer, inner, x) if x.dim() == 3 else _map_layout(layer, inner, x)
        if layout is not None:
            return layout
    return "NLC" if x.dim() == 3 else "NCHW"


def _map_layout(layer: nn.Module, inner: Tensor, x: Tensor) -> Layout | None:
    if isinstance(layer, nn.Conv2d) and inner.shape[2:] == x.shape[2:]:
        return "NCHW"
    if isinstance(layer, nn.Conv2d) and inner.shape[2:] == x.shape[1:3]:
        return "NHWC"
    if isinstance(layer, nn.Linear | nn.LayerNorm) and inner.shape == x.shape:
        return "NHWC"
    return None


def _row_layout(layer: nn.Module, inner: Tensor, x: Tensor) -> Layout | None:
    """Tell a signal ``[N, C, L]`` from tokens ``[N, L, C]``, which token mixers convolve, too."""
    if isinstance(layer, nn.Conv1d | nn.BatchNorm1d) and inner.shape[2] == x.shape[2]:
        return "NCL"
    if isinstance(layer, nn.Conv1d | nn.BatchNorm1d) and inner.shape[2] == x.shape[1]:
        return "NLC"
    if isinstance(layer, nn.Linear | nn.LayerNorm) and inner.shape == x.shape:
        return "NLC"
    return None
