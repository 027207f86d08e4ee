"""Attach a domain to a frozen backbone.

Rules of this file: the backbone's module tree, names and weights stay as they are. Adaptors, gates,
head and overrides live beside it in ``AttachedModel.domain`` and act through hooks that exist only
while a forward runs. So one backbone object serves any number of domains, one forward at a time,
and its state-dict keys are those of its own checkpoint. In training, rows whose gate is closed skip
their block (``gated``), and lean layers keep only what their gradients need (``lean``). Nothing
here trains or exports.

Law: after ``attach`` and after any training, ``weights_digest(model)`` is unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.core import digest
from toolchain.core.errors import AttachError, Fault, UnknownNameError
from toolchain.core.fields import read_section, show
from toolchain.recipe import METHOD_OPTIONS, METHODS, AdaptorOptions
from toolchain.training.adapt import guards, rows
from toolchain.training.adapt.adaptors import BlockDomain, Gate, decide, straight_through
from toolchain.training.adapt.blocks import Anatomy, Site, examine
from toolchain.training.adapt.dryrun import block_input, first_tensor, output_tensor
from toolchain.training.adapt.gated import GatedForward, RowsOf
from toolchain.training.adapt.methods import REGISTRY, DomainParts, MethodInputs
from toolchain.training.adapt.overrides import Overrides, Selection
from toolchain.training.lean.mode import LeanMode
from toolchain.training.lean.options import Keep, Lean

HEAD = "head"
OWN = "own"
"""The first word of the slots of overrides, in checkpoints and bundles."""

MOMENTUM = 0.1
"""PyTorch's own: running statistics are the mean over the last ten batches or so."""

_LAST_IS_FASTER = "cpu"  # oneDNN's convolutions need no reordering there, in either direction


@dataclass(slots=True)
class Trace:
    """The tensors at each cut point of one forward, by block; maps are ``[N, ...]``.

    ``inputs``, ``outputs``: each block's input and the frozen block's own output, adapted or not.
    The rest exists for adapted blocks only. ``corrections``: the adaptor's output on the coarse
    grid. ``gates``: logits ``[N, 1]``. ``opened``: the decisions used, ``[N, 1]``. ``results``: the
    adapted output. ``features``: the head's input. Training leaves out the maps (``inputs``,
    ``outputs``, ``corrections``, ``results``), and so does ``trace(maps=False)``: they would keep
    every activation alive.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    corrections: dict[str, Tensor] = field(default_factory=dict)
    gates: dict[str, Tensor] = field(default_factory=dict)
    opened: dict[str, Tensor] = field(default_factory=dict)
    results: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    logits: Tensor | None = None


class AttachedModel(nn.Module):
    """A frozen backbone with one domain: maps ``[N, C, H, W]`` to logits ``[N, classes]``.

    ``sites`` maps the adapted blocks' short names (``block03``) to where they are. In training mode
    closed rows are probed as ``generator`` draws (``rows``). ``momentum``: of running statistics,
    for methods that train with the batch's. ``lean`` says what layers keep for the backward pass;
    None is PyTorch's own way. ``forced`` replaces decisions ``[N, 1]`` by block. ``slots_only``
    leaves out the method's overrides. ``rows_of`` turns decisions into the rows that a gated block
    runs for; tensors without values need another one (``memory.analytic``): nobody can read their
    decisions.
    """

    def __init__(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        method: str,
        classes: int,
        options: AdaptorOptions,
        *,
        lean: Lean | None = None,
        selection: Selection | None = None,
        slots_only: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.anatomy = anatomy
        self.method = method
        self.classes = classes
        self.options = options
        self.selection: Selection = dict(selection or {})
        self.generator: torch.Generator | None = None
        self.momentum = MOMENTUM
        self.forced: Mapping[str, Tensor] = {}
        self.rows_of: RowsOf = rows.Rows.of
        self.lean = lean if REGISTRY[method].lean else None
        parts = REGISTRY[method].parts(MethodInputs(backbone, anatomy, options, self.selection))
        self.batch_statistics = parts.batch_statistics and not slots_only
        self.sites: dict[str, Site] = dict(_adapted(anatomy, parts, options))
        self.domain = nn.ModuleDict(
            {
                name: BlockDomain(site, options, attention=parts.attention, gated=parts.gates)
                for name, site in self.sites.items()
            }
        )
        self.domain[HEAD] = nn.Linear(anatomy.features, classes)
        if parts.overrides and not slots_only:
            guards.refuse_shared(backbone, parts.overrides)
            self.domain[OWN] = Overrides(parts.overrides)
        # Found in the first step and remembered, so that later steps do not run such a block twice.
        self._whole: set[str] = set()  # gated blocks that take or return more than one map
        self.train(False)

    @property
    def overrides(self) -> Overrides | None:
        """What the domain has of its own in place of backbone tensors."""
        overrides = self.domain._modules.get(OWN)
        assert overrides is None or isinstance(overrides, Overrides)
        return overrides

    def train(self, mode: bool = True) -> AttachedModel:
        """Switch the domain's mode; the backbone stays in evaluation, its statistics never move."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[N, classes]`` of normalised pictures ``[N, C, H, W]``."""
        logits = self.trace(x, maps=False).logits
        assert logits is not None
        return logits

    def trace(self, x: Tensor, *, maps: bool = True) -> Trace:
        """Run ``x`` ``[N, C, H, W]`` once and return the tensors at every cut point.

        Without ``maps``, and in training, the blocks' maps are left out. Raises AttachError where
        the backbone runs already, or a trained kernel was not run.
        """
        if any(module.training for module in self.backbone.modules()):
            self.backbone.eval()  # someone switched a part of it: its statistics would move
        trace = Trace()
        lean = self.lean if torch.is_grad_enabled() else None
        own = self.overrides
        # Lean convolutions take the trained channels apart from the frozen kernel.
        slices = own.slices(self.backbone) if own is not None and lean is not None else {}
        mode = nullcontext() if lean is None else LeanMode(lean, slices)
        counts = self.batch_statistics and self.training
        with (
            # First, so that a second forward is refused before its hooks are in place.
            guards.alone(self.backbone),
            self._hooked(trace, maps=maps and not self.training),
            guards.batch_statistics(self.backbone, self.momentum if counts else None),
            mode,
        ):
            if lean is not None:
                x = self.laid_out(x)
            answer = self._run(x, sparse=lean is None)
            if self.anatomy.head is None:
                output = output_tensor(answer)
                assert output is not None
                trace.features, trace.logits = output, self.domain[HEAD](output)
        if own is not None and isinstance(mode, LeanMode):
            guards.refuse_unmet(own, self.backbone, mode)
        return trace

    def laid_out(self, x: Tensor) -> Tensor:
        """Return pictures ``[N, C, H, W]`` in the memory format that lean layers run fastest in."""
        able = self.anatomy.channels_last and x.dim() == 4
        last = able and x.device.type == _LAST_IS_FASTER
        return x.contiguous(memory_format=torch.channels_last) if last else x

    def _run(self, x: Tensor, *, sparse: bool) -> object:
        """Run the backbone with the domain's overrides."""
        if self.overrides is None:
            return self.backbone(x)
        values = self.overrides.values(self.backbone, sparse=sparse)
        # Tensors are swapped module by module, so a module in two places is swapped once: untied.
        return torch.func.functional_call(self.backbone, values, (x,), tie_weights=False)

    def executed_share(self, trace: Trace) -> Tensor:
        """Return the share ``[N]`` of the backbone's multiply-adds that open gates execute.

        A block without a gate always runs. The adaptors' own cost is not in it.
        """
        total = float(self.anatomy.flops)
        # Count what closed gates skip; blocks without a gate then need no term.
        shares = [
            (1 - opened.reshape(-1)) * (self.sites[name].flops / total)
            for name, opened in trace.opened.items()
        ]
        if not shares:
            return torch.ones(1)
        return 1 - torch.stack(shares).sum(0)

    @contextmanager
    def _hooked(self, trace: Trace, *, maps: bool) -> Iterator[None]:
        """Join the domain by hooks inside the block of code; they fill ``trace``."""
        learns = self.training and torch.is_grad_enabled()
        with ExitStack() as stack:
            for name, site in self.anatomy.named_sites():
                block = self.backbone.get_submodule(site.name)
                if learns:
                    stack.enter_context(block.register_forward_pre_hook(guards.refuse_ungraded))
                # In training a gated block's forward is replaced, as a hook could not stop it from
                # running; in evaluation it runs, and where() picks, as in the exported graph.
                if self.training and self.is_gated(name):
                    stack.enter_context(guards.replaced(block, self._skipping(name, block, trace)))
                elif maps or name in self.sites:
                    hook = self._block_hook(name, trace, maps=maps)
                    # First, so that hooks of the caller see the adapted map.
                    handle = block.register_forward_hook(hook, with_kwargs=True, prepend=True)
                    stack.enter_context(handle)
            if self.anatomy.head is not None:
                classifier = self.backbone.get_submodule(self.anatomy.head)
                stack.enter_context(classifier.register_forward_hook(self._head_hook(trace)))
            yield

    @property
    def gated(self) -> bool:
        """Whether a block of the domain has a gate."""
        return any(map(self.is_gated, self.sites))

    def gates(self) -> Iterator[tuple[str, Gate]]:
        """Yield the gates by the short names of their blocks."""
        for name in self.sites:
            if (gate := self._block_domain(name).gate) is not None:
                yield name, gate

    def is_gated(self, name: str) -> bool:
        """Tell whether the block with this short name has a gate."""
        return name in self.sites and self._block_domain(name).gate is not None

    def _block_domain(self, name: str) -> BlockDomain:
        module = self.domain[name]
        assert isinstance(module, BlockDomain)
        return module

    def _block_hook(self, name: str, trace: Trace, *, maps: bool) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            x, y = block_input(args, kwargs), first_tensor(output)
            assert x is not None
            assert y is not None
            if maps:
                trace.inputs[name], trace.outputs[name] = x, y
            if name not in self.sites:
                return None
            if self.training:
                result = self._corrected(name, x, y)
            else:
                result = self._adapt(name, x, y, trace, maps=maps)
            return (result, *output[1:]) if isinstance(output, tuple) else result

        return hook

    def _adapt(self, name: str, x: Tensor, y: Tensor, trace: Trace, *, maps: bool) -> Tensor:
        domain = self._block_domain(name)
        correction, logits = domain(x)
        opened = None
        if logits is not None:
            opened = decide(logits, self.forced.get(name))
            trace.gates[name], trace.opened[name] = logits, opened
        result = domain.join(x, y, correction, opened)
        if maps:
            trace.corrections[name], trace.results[name] = correction, result
        return result

    def _corrected(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Add the correction of an adaptor without a gate."""
        domain = self._block_domain(name)
        return rows.corrected(y, domain(x)[0], domain.layout)

    def _skipping(self, name: str, block: nn.Module, trace: Trace) -> GatedForward:
        """Return a forward of a gated block that runs it for the rows whose gate is open."""

        def decided(logits: Tensor) -> Tensor:
            opened = straight_through(decide(logits, self.forced.get(name)), logits)
            trace.gates[name], trace.opened[name] = logits, opened
            return opened

        return GatedForward(
            name=name,
            domain=self._block_domain(name),
            run=block.forward,
            decide=decided,
            precision="fp32" if self.lean is None else self.lean.keep,
            rows_of=self.rows_of,
            generator=self.generator,
            whole=self._whole,
        )

    def _head_hook(self, trace: Trace) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
            # A hook cannot stop the backbone's own classifier: it runs, and its answer is dropped.
            pixel = args[0].dim() == 4  # the classifier is a convolution of one pixel
            trace.features = args[0].flatten(1) if pixel else args[0]
            trace.logits = self.domain[HEAD](trace.features)

        return hook


def _adapted(
    anatomy: Anatomy, parts: DomainParts, options: AdaptorOptions
) -> Iterator[tuple[str, Site]]:
    if not parts.adaptors:
        return
    for name, site in anatomy.named_sites():
        if options.placement == "all" or site.gateable:
            yield name, site


def attach(
    backbone: nn.Module,
    *,
    method: str = "da3",
    classes: int,
    input_shape: Sequence[int] = (3, 224, 224),
    blocks: Iterable[str] | None = None,
    head: str | None = None,
    options: AdaptorOptions | None = None,
    seed: int = 0,
    lean: bool | Keep | Lean = False,
    selection: Selection | None = None,
    **overrides: Any,
) -> AttachedModel:
    """Join a frozen backbone with a fresh domain; ``method`` is one of ``methods.REGISTRY``.

    ``input_shape`` (channels, height, width) fixes the blocks' shapes. ``blocks`` and ``head`` name
    modules where the structure does not tell them (``head=""``: the backbone returns features).
    Single options may be passed by keyword: ``attach(net, classes=10, pool=2)``. The domain starts
    from ``seed``; the global random state stays as it was. The backbone's parameters lose
    ``requires_grad``; nothing else about it changes.

    ``lean=True``: training keeps only what gradients need. The gradients stay those of the stock
    layers for the same layout of maps; only mobiletl masks smooth activations. ``lean="int8"`` or
    ``"half"``: inputs of trained layers wait in that precision, too (``lean.Lean`` has all
    choices). ``selection``: the channels that ``sparse`` updates (``loop.contribution.search``).
    Raises AttachError, UnknownNameError (method, option).
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    if type(classes) is not int or classes < 1:
        raise AttachError(f"expected at least one class, got {show(classes)}", fix="pass classes=N")
    known = {f.name for f in fields(AdaptorOptions)}
    for key in overrides:
        if key not in known:
            raise UnknownNameError("adaptor option", key, known)
    checked = _checked({**asdict(options or AdaptorOptions()), **overrides})
    guards.refuse_compiled(backbone)
    guards.refuse_weights(backbone)
    anatomy = examine(backbone, input_shape, blocks=blocks, head=head)
    # New tensors are drawn on the CPU; without devices=[] torch would also save every GPU's state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AttachedModel(
            backbone,
            anatomy,
            method,
            classes,
            checked,
            lean=_lean(lean, method),
            selection=selection,
        )
    if set(METHOD_OPTIONS[method]) & {"placement"} and not model.sites:
        raise AttachError(
            "no block keeps its shape, so none can take an adaptor under placement='gateable'",
            fix="use placement='all'",
        )
    _refuse_entangled(model)
    return model


def _refuse_entangled(model: AttachedModel) -> None:
    """Refuse gates on blocks that others need even where the gate is closed."""
    entangled = model.anatomy.entangled
    gated = [site.name for name, site in model.sites.items() if model.is_gated(name)]
    if not (wrong := [name for name in gated if name in entangled]):
        return
    free = [name for name in gated if name not in entangled]
    others = f"name the others: attach(..., blocks={free}), or blocks: in a recipe; or " * bool(
        free
    )
    raise AttachError(
        f"block {wrong[0]!r} cannot have a gate: {entangled[wrong[0]]}"
        + f" ({len(wrong)} blocks are like this)" * (len(wrong) > 1),
        fix=f"{others}use a method without gates: method='da2'",
    )


def _lean(argument: bool | Keep | Lean, method: str) -> Lean | None:
    """Return what ``attach(lean=...)`` means."""
    smooth = REGISTRY[method].smooth
    if isinstance(argument, Lean):
        return argument
    if isinstance(argument, bool):
        return Lean(smooth=smooth) if argument else None
    if argument not in get_args(Keep):
        raise AttachError(
            f"expected lean as True, False or one of {', '.join(get_args(Keep))}, "
            f"got {show(argument)}",
            fix="pass lean=True for exact gradients",
        )
    return Lean(keep=argument, smooth=smooth)


def _checked(values: Mapping[str, Any]) -> AdaptorOptions:
    """Return options from code, checked by the rules of the recipe."""
    faults: list[Fault] = []
    options = read_section(AdaptorOptions, "", values, faults)
    if options is None:
        lines = "\n  ".join(str(fault) for fault in faults)
        raise AttachError(
            f"expected adaptor options as in a recipe, got\n  {lines}",
            fix="correct the options named above",
        )
    return options


def backbone_state(backbone: nn.Module, head: str | None) -> dict[str, Tensor]:
    """Return by name the tensors that identify a backbone; ``head``: the module of its classifier.

    It leaves out the classifier, which a domain's head replaces, and BatchNorm's batch counters,
    which evaluation never reads.
    """
    prefix = f"{head}." if head else None
    return {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
        and not (prefix is not None and name.startswith(prefix))
    }


def arrays(state: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Return a state dict as numpy arrays on the host, same names and dtypes."""
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in state.items()}


def weights_digest(model: AttachedModel) -> str:
    """Return the identity of the model's frozen backbone (``sha256:...``)."""
    return digest.weights_digest(arrays(backbone_state(model.backbone, model.anatomy.head)))


def domain_state(model: AttachedModel) -> dict[str, Tensor]:
    """Return the domain's tensors by slot name, without BatchNorm's batch counters."""
    return {
        name: tensor
        for name, tensor in model.domain.state_dict().items()
        if "num_batches_tracked" not in name
    }
