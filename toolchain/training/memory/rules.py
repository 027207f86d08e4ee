"""What each torch function keeps for its backward pass, by rule.

Rules of this file: one rule per function name, told from the tensors that go in and come out, from
who among them requires a gradient, and from the lean options; what autograd keeps is not looked at.
It is TinyTL's rule (Cai et al., NeurIPS 2020, section 3.1: an input is kept where a weight is
trained, a ReLU keeps one bit) widened to stock layers, norms and pools. Names are torch's without
underscores, so that ``add``, ``add_`` and ``__iadd__`` are one. A function without a rule is taken
to keep all its floating inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from toolchain.training.lean import Lean
from toolchain.training.lean.options import Precision
from toolchain.training.lean.pools import fits_a_byte


@dataclass(frozen=True, slots=True)
class Kept:
    """What a function keeps: whole storages of ``tensors``, and ``fresh`` bytes of its own."""

    tensors: tuple[Tensor, ...] = ()
    fresh: int = 0

    def __add__(self, other: Kept) -> Kept:
        return Kept((*self.tensors, *other.tensors), self.fresh + other.fresh)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a torch function; ``part`` is the number of trained input channels, if some."""

    args: tuple[Any, ...]
    named: Mapping[str, Any]
    result: Any
    lean: Lean | None
    part: int | None = None

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument by its place or name."""
        return self.args[place] if len(self.args) > place else self.named.get(name, default)

    @property
    def x(self) -> Tensor:
        """The first argument, the map."""
        found = self.get(0, "input")
        assert isinstance(found, Tensor)
        return found

    @property
    def out(self) -> Tensor:
        """The result, the first of several."""
        found = self.result[0] if isinstance(self.result, tuple) else self.result
        assert isinstance(found, Tensor)
        return found


Rule = Callable[[Call], Kept]
_FLOAT = 4  # means, deviations and int8's ranges
_INDEX = 8  # int64


def compressed(count: int, samples: int, precision: Precision, width: int = _FLOAT) -> int:
    """Return the bytes of ``count`` elements that wait in ``precision``."""
    if precision == "int8":
        return count + 2 * _FLOAT * samples
    return count * (2 if precision == "half" else width)


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments, those in lists and tuples too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def _input(call: Call, lean: Lean) -> Kept:
    """Keep the map as the inputs of trained layers are kept."""
    if lean.keep == "fp32":
        return Kept((call.x,))
    return Kept(fresh=compressed(call.x.numel(), call.x.shape[0], lean.keep))


def _bits(call: Call) -> Kept:
    return Kept(fresh=-(-call.x.numel() // 8))


def _trained(weight: Tensor | None) -> bool:
    return weight is not None and weight.requires_grad


def _convolution(call: Call) -> Kept:
    weight: Tensor = call.get(1, "weight")
    if call.lean is None:
        return Kept((call.x, weight))
    if call.part is not None:
        channels = call.x.shape[-3]
        count = call.x.numel() // channels * call.part
        return Kept((weight,), compressed(count, call.x.shape[0], call.lean.keep))
    return Kept((weight,)) + (_input(call, call.lean) if _trained(weight) else Kept())


def _stock_convolution(call: Call) -> Kept:
    return Kept((call.x, call.get(1, "weight")))


def _linear(call: Call) -> Kept:
    weight: Tensor = call.get(1, "weight")
    kept = Kept((weight,)) if call.x.requires_grad else Kept()
    if not _trained(weight):
        return kept
    return kept + (Kept((call.x,)) if call.lean is None else _input(call, call.lean))


def _batch_norm(call: Call) -> Kept:
    training, weight = bool(call.get(5, "training", False)), call.get(3, "weight")
    if training:
        return Kept((call.x,), 2 * _FLOAT * call.x.shape[1])
    if call.lean is None:
        return Kept((call.x,))
    return _input(call, call.lean) if _trained(weight) else Kept()


def _group_norm(call: Call) -> Kept:
    groups: int = call.get(1, "num_groups")
    return _normalised(call, call.get(2, "weight"), call.x.shape[0] * groups)


def _layer_norm(call: Call) -> Kept:
    last = 1
    for size in call.get(1, "normalized_shape"):
        last *= size
    return _normalised(call, call.get(2, "weight"), call.x.numel() // last)


def _normalised(call: Call, weight: Tensor | None, means: int) -> Kept:
    statistics = Kept(fresh=2 * _FLOAT * means)
    if call.lean is None or _trained(weight):
        return Kept((call.x,)) + statistics
    # A shift alone needs no map.
    return _input(call, call.lean) + statistics if call.x.requires_grad else Kept()


def _average(call: Call) -> Kept:
    return Kept((call.x,)) if call.lean is None else Kept()


def _adaptive_average(call: Call) -> Kept:
    # torch takes a mean where one cell is asked for, and a mean keeps nothing.
    return Kept() if call.out.shape[-2:].numel() == 1 else _average(call)


def _maximum(call: Call) -> Kept:
    if call.lean is None or not fits_a_byte(call.get(1, "kernel_size")):
        return Kept((call.x,), _INDEX * call.out.numel())
    return Kept(fresh=call.out.numel())


def _rectified(call: Call) -> Kept:
    return Kept((call.out,)) if call.lean is None else _bits(call)


def _before(call: Call, place: int) -> Kept:
    """Keep the input as it was: a copy where the function writes over it (argument ``place``)."""
    if call.get(place, "inplace", False):
        return Kept(fresh=call.x.numel() * call.x.element_size())
    return Kept((call.x,))


def _clamped(call: Call) -> Kept:
    return _before(call, 3) if call.lean is None else _bits(call)


def _clamped_to_six(call: Call) -> Kept:
    return _before(call, 1) if call.lean is None else _bits(call)


def _leaky(call: Call) -> Kept:
    return Kept((call.x,)) if call.lean is None else _bits(call)


def _smooth(call: Call) -> Kept:
    masked = call.lean is not None and call.lean.smooth == "mask"
    return _bits(call) if masked else _before(call, 1)


def _gelu(call: Call) -> Kept:
    masked = call.lean is not None and call.lean.smooth == "mask"
    return _bits(call) if masked else Kept((call.x,))


def _padded(call: Call) -> Kept:
    """Keep what is mirrored or repeated; zeros and what comes round need nothing."""
    return (
        Kept((call.x,)) if call.get(2, "mode", "constant") in ("reflect", "replicate") else Kept()
    )


def _nothing(_: Call) -> Kept:
    return Kept()


def _first(call: Call) -> Kept:
    return Kept((call.x,))


def _answer(call: Call) -> Kept:
    return Kept((call.out,))


def _factors(call: Call) -> Kept:
    """Keep each factor that the other one's gradient needs."""
    a, b = call.get(0, "input"), call.get(1, "other")
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    if not both:
        return Kept()
    return Kept((*((a,) if b.requires_grad else ()), *((b,) if a.requires_grad else ())))


def _quotient(call: Call) -> Kept:
    a, b = call.get(0, "input"), call.get(1, "other")
    if not isinstance(b, Tensor):
        return Kept()
    numerator = (a,) if b.requires_grad and isinstance(a, Tensor) else ()
    return Kept((*numerator, b))


def _added_product(call: Call) -> Kept:
    a, b = call.get(1, "mat1"), call.get(2, "mat2")
    return Kept((*((a,) if b.requires_grad else ()), *((b,) if a.requires_grad else ())))


def _indices(call: Call) -> Kept:
    return Kept(tuple(t for t in tensors((*call.args, *call.named.values())) if _is_index(t)))


def _is_index(tensor: Tensor) -> bool:
    return not tensor.is_floating_point()


def _attention(call: Call) -> Kept:
    return Kept((*call.args[:3], call.out), _FLOAT * call.out.shape[:-1].numel())


def _cross_entropy(call: Call) -> Kept:
    """Keep log-softmax's answer, the labels and the sum of weights."""
    labels: Tensor = call.get(1, "target")
    return Kept((labels,), call.x.numel() * _FLOAT + _FLOAT)


_BY_RULE: Mapping[Rule, str] = {
    _convolution: "conv2d",
    _stock_convolution: "conv1d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    _linear: "linear",
    _batch_norm: "batch_norm",
    _group_norm: "group_norm",
    _layer_norm: "layer_norm",
    _average: "avg_pool2d",
    _adaptive_average: "adaptive_avg_pool2d",
    _maximum: "max_pool2d",
    _rectified: "relu",
    _clamped: "hardtanh",
    _clamped_to_six: "relu6",
    _leaky: "leaky_relu",
    _smooth: "hardswish silu",
    _gelu: "gelu",
    _padded: "pad",
    _first: "hardsigmoid elu celu selu mish softplus abs clamp clip square pow sin cos log",
    _answer: "sigmoid tanh softmax log_softmax exp sqrt rsqrt reciprocal",
    _factors: "mul matmul mm bmm rmul rmatmul multiply",
    _quotient: "div truediv true_divide",
    _added_product: "addmm",
    _indices: "index_select getitem index_add where gather",
    _attention: "scaled_dot_product_attention",
    _cross_entropy: "cross_entropy",
    _nothing: (
        "add sub radd rsub iadd neg mean sum view reshape flatten unflatten permute transpose t "
        "contiguous clone to float detach expand expand_as repeat squeeze unsqueeze cat concat "
        "stack chunk split unbind narrow select roll flip pixel_shuffle movedim swapaxes "
        "type_as view_as get set size dim numel identity dropout interpolate zeros_like "
        "requires_grad new_empty new_zeros new_ones is_floating_point len iter round floor type "
        "adjoint mT subtract index_copy unfold tile feature_dropout dropout2d alpha_dropout"
    ),
}
TABLE: Mapping[str, Rule] = {
    name: rule for rule, names in _BY_RULE.items() for name in names.split()
}


def general(call: Call) -> Kept:
    """Keep every floating input and output: the rule of functions that have none."""
    seen = (*call.args, *call.named.values(), call.result)
    return Kept(tuple(t for t in tensors(seen) if t.is_floating_point()))


def plain_name(function: Callable[..., Any]) -> str:
    """Return a torch function's name without underscores at its ends."""
    return getattr(function, "__name__", type(function).__name__).strip("_")
