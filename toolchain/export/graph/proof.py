"""Prove that the halves of a split answer as PyTorch does, or name the module that does not.

Rules of this file: noise goes through the model in eager mode and through the halves put together,
two pictures and one alone, with every gate forced open and with every gate forced closed; every cut
point must agree.
Where a net itself loses digits (a norm of a nearly constant map), float64 tells how many.
It trusts no exporter: PyTorch's leaves out arguments of some operators and does not say so (2.13:
``divisor_override`` of AvgPool2d). Only after a fault are single modules exported, to find the one.
It changes neither the model nor the halves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.bundle.golden import FORCE, shifted
from toolchain.core.errors import CaptureError, GraphError
from toolchain.device.runtime.ort.session import Session
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves, recompose
from toolchain.export.graph.names import IMAGE, LOGITS, Cut
from toolchain.export.graph.program import noise, quiet
from toolchain.training.adapt.attached import AttachedModel, arrays, domain_state

TOLERANCE = 1e-4
"""How far a value may be from PyTorch's, of its own range: rounding, of folded BatchNorms too."""
ROUNDINGS = 4
"""How often as far it may be as PyTorch's own float32 is from its float64: one way to round is as
good as another, and a wrong translation is off by far more."""
MOST_LOST = 0.1 / ROUNDINGS
"""Where float32 itself loses more, a graph that is off by a tenth would count as proved."""
_SAMPLES = 16
"""Pictures that tell what float32 loses: a gate has one number for each, and one may be right by
chance."""

Arrays = Mapping[str, np.ndarray[Any, Any]]


def prove(model: AttachedModel, halves: Halves) -> None:
    """Compare ``halves``, their tensors in memory, with ``model`` at every cut point.

    Raises CaptureError naming the first cut point that differs, and the module that PyTorch's
    exporter translates wrongly, if one alone does.
    """
    # Nothing is optimised: a fused node may round otherwise.
    whole = recompose(halves, fed=halves.slots)
    session = Session(store.to_bytes(whole), exact=True, what="halves")
    slots = arrays(domain_state(model))
    gated = [cut.site for cut in halves.cuts if cut.gate in halves.gates]
    pictures = noise(model)
    for amount in (FORCE, -FORCE) if gated else (0.0,):
        values = shifted(slots, gated, np.full(len(gated), amount, np.float32))
        rounding = Rounding(model, halves, values)
        # One picture as well: an exporter may have taken for granted that there are more.
        for images in (pictures, pictures[:1]):
            feeds = {IMAGE: images, **{name: values[name] for name in halves.slots}}
            excess = rounding.excess(session.run(feeds), _eager(model, halves, images, values))
            if excess is not None:
                raise _fault(model, halves, excess, images)


@dataclass(frozen=True, slots=True)
class Excess:
    """An error that is no rounding: ``off`` at the cut point ``name``, where ``most`` may be.

    Both are parts of the cut point's range.
    """

    name: str
    off: float
    most: float


class Rounding:
    """Tells rounding from a fault, at the cut points of one model with one set of slots.

    An error within ``TOLERANCE`` is rounding. A larger one is held to what PyTorch's float32 loses
    there itself. To find that takes a copy of the model, so it is done where it is needed first.
    """

    def __init__(self, model: AttachedModel, halves: Halves, values: Arrays) -> None:
        """Judge the cut points of ``halves``; ``values``: the slots with which they are run."""
        self._model, self._halves, self._values = model, halves, values

    def excess(self, answers: Arrays, wants: Arrays) -> Excess | None:
        """Return the first of ``wants`` from which ``answers`` is further off than rounding.

        Both are arrays by cut point, of one shape. None if all are near enough. Raises CaptureError
        where float32 loses too much to tell.
        """
        for name, want in wants.items():
            off = _cut_error(name, answers[name], want)
            # ``not <=`` and not ``>``: a NaN must fail, and every comparison with it is false.
            if not off <= TOLERANCE:
                most = ROUNDINGS * self._loss(name)
                if not off <= most:
                    return Excess(name=name, off=off, most=max(most, TOLERANCE))
        return None

    def _loss(self, name: str) -> float:
        """Return what float32 loses at ``name``; raises CaptureError if that is nearly all."""
        lost = self._losses.get(name, 0.0)
        if lost > MOST_LOST:
            raise CaptureError(
                f"float32 itself loses {lost:.2g} of the range of {name!r}, expected at most "
                f"{MOST_LOST:g}: whether the exported graph is the model cannot be told",
                fix="look for a norm of a nearly constant map, or a BatchNorm with a running "
                "variance near zero, before that block; weights that were never trained can be "
                "like this",
            )
        return lost

    @cached_property
    def _losses(self) -> dict[str, float]:
        """How far PyTorch's float32 is from its float64 at each cut point, of its range.

        Empty where the model does not run in float64: a forward that makes float32 tensors of its
        own has no such excuse.
        """
        images = noise(self._model, _SAMPLES)
        try:
            exact = _in_float64(self._model, self._halves, images, self._values)
        except RuntimeError:
            return {}
        rounded = _eager(self._model, self._halves, images, self._values)
        return {name: _cut_error(name, value, exact[name]) for name, value in rounded.items()}


def _in_float64(
    model: AttachedModel, halves: Halves, images: Any, values: Arrays
) -> dict[str, Any]:
    """Return what a copy of the model in float64 has at each cut point."""
    double = copy.deepcopy(model).double()
    return _eager(double, halves, images.astype(np.float64), values)


@torch.no_grad()
def _eager(model: AttachedModel, halves: Halves, images: Any, values: Arrays) -> dict[str, Any]:
    """Return what PyTorch has at each cut point, in running order; ``values``: the slots."""
    model.train(False)
    tensors = {name: torch.from_numpy(values[name]) for name in values}
    before = {name: tensor.clone() for name, tensor in domain_state(model).items()}
    model.domain.load_state_dict(tensors, strict=False)
    try:
        trace = model.trace(torch.from_numpy(images))
    finally:
        model.domain.load_state_dict(before, strict=False)
    named: dict[str, Tensor | None] = {}
    for cut in halves.cuts:
        named[cut.input] = trace.inputs[cut.site]
        named[cut.output] = trace.outputs[cut.site]
        named[cut.correction] = trace.corrections.get(cut.site)
        named[cut.gate] = trace.gates.get(cut.site)
        named[cut.result] = trace.results.get(cut.site)
    named |= {halves.features: trace.features, LOGITS: trace.logits}
    outputs = {v.name for half in (halves.backbone, halves.domain) for v in half.graph.outputs}
    return {n: t.numpy() for n, t in named.items() if t is not None and n in outputs}


def _cut_error(name: str, value: Any, want: Any) -> float:
    """Return how far the cut point ``name`` is from ``want``, of its range."""
    # A gate's logit is near zero by chance; what counts is its distance from the threshold.
    return _error(value, want, at_least=1.0 if name.startswith("gate.") else 0.0)


def _error(value: Any, want: Any, *, at_least: float = 0.0) -> float:
    """Return the largest difference over the range of ``want``, which is ``at_least`` that large.

    A NaN of a frozen tensor must be in both.
    """
    if value.shape != want.shape:
        return float("inf")
    same = np.isnan(value) & np.isnan(want)
    scale = max(float(np.abs(want[~np.isnan(want)]).max(initial=0.0)), at_least) or 1.0
    return float(np.where(same, 0.0, np.abs(value - want)).max(initial=0.0)) / scale


def _fault(model: AttachedModel, halves: Halves, excess: Excess, images: Any) -> CaptureError:
    name, off = excess.name, excess.off
    where = f"{name!r} differs from PyTorch by {off:.2g} of its range, expected {TOLERANCE:g}"
    for path, module, alone in _wrong_modules(model, _suspects(model, halves, name), images):
        return CaptureError(
            f"PyTorch's exporter {torch.__version__} translates {path!r} wrongly: {module}. Alone, "
            f"its graph differs from the module by {alone:.2g} of its range; so {where}",
            fix=f"write {path!r} with other operators that do the same, such as the module without "
            "its rarer options and a multiplication, and report the fault to PyTorch",
        )
    place = next((c.module for c in halves.cuts if name.endswith(f".{c.site}")), "the backbone")
    return CaptureError(
        f"the exported graph is not the model: {where}, and no module of {place!r} alone does",
        fix=f"look at the functions that the forward of {place!r} calls: PyTorch's exporter "
        f"{torch.__version__} translates one of them wrongly; write it with other operators",
    )


def _suspects(model: AttachedModel, halves: Halves, name: str) -> list[str]:
    """Return the paths of the leaf modules that may have made ``name``, in the model's order."""
    leaves = [path for path, module in model.named_modules() if path and not any(module.children())]
    blocks = {f"backbone.{cut.module}.": cut for cut in halves.cuts}
    inside = next((p for p, cut in blocks.items() if cut.output == name), None)
    if inside is not None:
        return [path for path in leaves if f"{path}.".startswith(inside)]
    site = next((cut.site for cut in halves.cuts if _is_domains(cut, name)), None)
    if site is not None:
        return [path for path in leaves if path.startswith(f"domain.{site}.")]
    return [path for path in leaves if not f"{path}.".startswith((*blocks, "domain."))]


def _is_domains(cut: Cut, name: str) -> bool:
    return name in (cut.correction, cut.gate, cut.result)


def _wrong_modules(
    model: AttachedModel, paths: list[str], images: Any
) -> Iterator[tuple[str, nn.Module, float]]:
    """Yield path, module and error of those whose own graph does not answer as they do."""
    seen: set[str] = set()
    for path, (module, inputs, output) in _calls(model, paths, images).items():
        # Modules of one type and one set of options are translated alike.
        if repr(module) in seen:
            continue
        seen.add(repr(module))
        off = _alone(module, inputs, output)
        if not off <= TOLERANCE:
            yield path, module, off


Call = tuple[nn.Module, tuple[Tensor, ...], Tensor]


@torch.no_grad()
def _calls(model: AttachedModel, paths: list[str], images: Any) -> dict[str, Call]:
    """Return the modules that ran, with their tensors, in running order."""
    calls: dict[str, Call] = {}
    before: dict[str, tuple[Any, ...]] = {}

    # Copies: an activation may write in place, into its own input or the output before it.
    def enter(path: str) -> Any:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            before[path] = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)

        return note

    def leave(path: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and all(isinstance(x, Tensor) for x in inputs):
                calls.setdefault(path, (module, before[path], output.clone()))

        return note

    modules = [(path, model.get_submodule(path)) for path in paths]
    handles = [module.register_forward_pre_hook(enter(path)) for path, module in modules]
    handles += [module.register_forward_hook(leave(path)) for path, module in modules]
    try:
        model.trace(torch.from_numpy(images))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _alone(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> float:
    """Return how far a module's own graph is from it; 0 where it has none."""
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(module, inputs, dynamo=True, optimize=False, verbose=False)
        assert program is not None
        session = Session(store.to_bytes(program.model), exact=True, what="module")
        feeds = {n: x.numpy() for n, x in zip(session.inputs, inputs, strict=True)}
        (value,) = session.run(feeds).values()
    # A suspect that cannot be looked at alone says nothing; the caller names the block then.
    except (torch.onnx.errors.OnnxExporterError, GraphError, ValueError):
        return 0.0
    return _error(value, output.numpy())
