"""Attach a domain to a frozen backbone.

Rules of this file: the backbone's module tree, names and weights stay as they are; adaptors, gates
and head live beside it in ``AttachedModel.domain`` and act through hooks that exist only while a
forward runs. So one backbone object serves any number of domains, and its state-dict keys are those
of its own checkpoint. Nothing here trains or exports.

Law: after ``attach`` and after any training, ``weights_digest(model)`` is unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolchain import digest
from toolchain.adapt.adaptors import BlockDomain, decide, logistic_noise
from toolchain.adapt.blocks import Anatomy, Site, examine
from toolchain.adapt.dryrun import block_input, first_tensor, output_tensor
from toolchain.errors import AttachError, Fault, UnknownNameError
from toolchain.fields import read_section, show
from toolchain.recipe import METHODS, AdaptorOptions

HEAD = "head"


@dataclass(slots=True)
class Trace:
    """What happens at each cut point in one forward, by name; maps are ``[N, ...]``.

    ``inputs``, ``outputs``: each block's input and the frozen block's own output, adapted or not;
    the rest exists for adapted blocks only. ``corrections``: the
    adaptor's answer on the coarse grid. ``gates``: logits ``[N, 1]``. ``results``: the adapted
    output. ``features``: the head's input. ``opened``: the decisions used.
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
    gates are sampled with Gumbel noise from ``generator``, as strong as ``noise_scale`` says; in
    evaluation they are exact.
    """

    def __init__(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        method: str,
        classes: int,
        options: AdaptorOptions,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.anatomy = anatomy
        self.method = method
        self.classes = classes
        self.options = options
        self.generator: torch.Generator | None = None
        self.temperature = 1.0
        self.noise_scale = 1.0
        self.sites: dict[str, Site] = dict(_adapted(anatomy, method, options))
        self.domain = nn.ModuleDict(
            {name: BlockDomain(site, method, options) for name, site in self.sites.items()}
        )
        self.domain[HEAD] = nn.Linear(anatomy.features, classes)
        self.train(False)

    def train(self, mode: bool = True) -> AttachedModel:
        """Switch the domain's mode; the backbone stays in evaluation, its statistics never move."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[N, classes]`` of normalised pictures ``[N, C, H, W]``."""
        logits = self.trace(x).logits
        assert logits is not None
        return logits

    def trace(self, x: Tensor) -> Trace:
        """Run once and return every cut point."""
        if any(module.training for module in self.backbone.modules()):
            self.backbone.eval()  # someone switched a part of it: its statistics would move
        seen = Trace()
        with self._hooked(seen):
            answer = output_tensor(self.backbone(x))
        assert answer is not None
        if self.anatomy.head is None:
            seen.features, seen.logits = answer, self.domain[HEAD](answer)
        return seen

    def executed_share(self, trace: Trace) -> Tensor:
        """Return the share ``[N]`` of the backbone's multiply-adds that open gates execute.

        A block without a gate always runs. The adaptors' own cost is not in it.
        """
        total = float(self.anatomy.flops)
        shares = [
            (1 - opened.reshape(-1)) * (self.sites[name].flops / total)
            for name, opened in trace.opened.items()
        ]
        if not shares:
            return torch.ones(1)
        return 1 - torch.stack(shares).sum(0)

    @contextmanager
    def _hooked(self, seen: Trace) -> Iterator[None]:
        handles = [
            self.backbone.get_submodule(site.name).register_forward_hook(
                self._block_hook(name, seen), with_kwargs=True
            )
            for name, site in self.anatomy.named_sites()
        ]
        if self.anatomy.head is not None:
            classifier = self.backbone.get_submodule(self.anatomy.head)
            handles.append(classifier.register_forward_hook(self._head_hook(seen)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _block_hook(self, name: str, seen: Trace) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            x, y = block_input(args, kwargs), first_tensor(output)
            assert x is not None
            assert y is not None
            seen.inputs[name], seen.outputs[name] = x, y
            if name not in self.sites:
                return None
            result = self._adapt(name, x, y, seen)
            return (result, *output[1:]) if isinstance(output, tuple) else result

        return hook

    def _adapt(self, name: str, x: Tensor, y: Tensor, seen: Trace) -> Tensor:
        module = self.domain[name]
        assert isinstance(module, BlockDomain)
        correction, logits = module(x)
        opened = None
        if logits is not None:
            opened = decide(logits, noise=self._noise(logits), temperature=self.temperature)
            seen.gates[name], seen.opened[name] = logits, opened
        result = module.join(x, y, correction, opened)
        seen.corrections[name], seen.results[name] = correction, result
        return result

    def _noise(self, logits: Tensor) -> Tensor | None:
        if not self.training:
            return None
        return self.noise_scale * logistic_noise(logits.shape, self.generator)

    def _head_hook(self, seen: Trace) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
            pooled = args[0].dim() == 4  # the classifier is a convolution of one pixel
            seen.features = args[0].flatten(1) if pooled else args[0]
            seen.logits = self.domain[HEAD](seen.features)

        return hook


def _adapted(anatomy: Anatomy, method: str, options: AdaptorOptions) -> Iterator[tuple[str, Site]]:
    if method == HEAD:
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
    **overrides: Any,
) -> AttachedModel:
    """Join a frozen backbone with a fresh domain: ``method`` is ``da3``, ``da2`` or ``head``.

    ``input_shape`` (channels, height, width) fixes the blocks' shapes. ``blocks`` and ``head`` name
    modules where the structure does not tell them (``head=""``: the backbone returns features).
    Single options may be given by keyword: ``attach(net, classes=10, pool=2)``. The domain starts
    from ``seed``; the global random state is left as it was. The backbone's parameters lose
    ``requires_grad``; nothing else about it changes. Raises AttachError, UnknownNameError (method,
    option).
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    if type(classes) is not int or classes < 1:
        raise AttachError(f"expected at least one class, got {show(classes)}", fix="pass classes=N")
    known = {f.name for f in fields(AdaptorOptions)}
    for key in overrides:
        if key not in known:
            raise UnknownNameError("adaptor option", key, known)
    chosen = _checked({**asdict(options or AdaptorOptions()), **overrides})
    _check_weights(backbone)
    anatomy = examine(backbone, input_shape, blocks=blocks, head=head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AttachedModel(backbone, anatomy, method, classes, chosen)
    if method != HEAD and not model.sites:
        raise AttachError(
            "no block keeps its shape, so none can take an adaptor under placement='gateable'",
            fix="use placement='all'",
        )
    return model


def _checked(values: Mapping[str, Any]) -> AdaptorOptions:
    """Hold options given in code to the rules of the recipe."""
    faults: list[Fault] = []
    chosen = read_section(AdaptorOptions, "", values, faults)
    if chosen is None:
        lines = "\n  ".join(str(fault) for fault in faults)
        raise AttachError(
            f"expected adaptor options as in a recipe, got\n  {lines}",
            fix="correct the options named above",
        )
    return chosen


def _check_weights(backbone: nn.Module) -> None:
    """Refuse what no graph of ours can hold; a buffer may be infinite, as masks are."""
    weights = dict(backbone.named_parameters())
    for name, tensor in {**weights, **dict(backbone.named_buffers())}.items():
        if not tensor.is_floating_point() or nn.parameter.is_lazy(tensor):
            continue
        if tensor.dtype != torch.float32:
            raise AttachError(
                f"backbone tensor {name!r}: expected float32, got {tensor.dtype}",
                fix="attach to backbone.float()",
            )
        broken = ~tensor.isfinite() if name in weights else tensor.isnan()
        if bool(broken.any()):
            raise AttachError(
                f"backbone tensor {name!r}: expected finite values, got NaN or Inf",
                fix="load the backbone's weights again",
            )


def backbone_state(backbone: nn.Module, head: str | None) -> dict[str, Tensor]:
    """Return the tensors that make a backbone what it is.

    The classifier is left out (a domain's head replaces it) and so are BatchNorm's batch counters,
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
    """Return the domain's tensors by slot name, BatchNorm's batch counters left out."""
    return {
        name: tensor
        for name, tensor in model.domain.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
