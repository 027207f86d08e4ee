"""The program of an attached model: what its forward does, written down by PyTorch.

Rules of this file: the program is PyTorch's own (``torch.export``), with a free batch. It is never
optimised here, and no ONNX is made of it. What no program can hold is refused with its reason: an
answer that depends on the batch, a forward that writes to the frozen backbone, a Python decision on
a tensor's value. The digest of a program tells whether another model does the same.

Every cut point is an output of the program, named as in :mod:`toolchain.export.graph.names`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.experimental import _config
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from toolchain.core import digest
from toolchain.core.arrays import Floats
from toolchain.core.canonical import canonical_json
from toolchain.core.errors import CaptureError
from toolchain.export.graph.names import FEATURES, IMAGE, LOGITS, Cut
from toolchain.training.adapt.attached import AttachedModel, Trace
from toolchain.training.adapt.blocks import Site

MAX_BATCH = 4096
NEIGHBOUR_TOLERANCE = 1e-3
"""How far, of its own range, an answer may move when a picture is run alone: rounding only."""
FREE_BATCH = "write x.shape[0] or -1 in place of a number, and do not loop over the batch"
"""The fix for a forward that takes batches of one size only."""
_NO_TRANSLATION = re.compile(r"No ONNX function found for <OpOverload\(op='(?P<operator>[\w.]+)'")


@dataclass(frozen=True, slots=True)
class TracedProgram:
    """What PyTorch wrote down of a model's forward, and where it is to be cut.

    ``names``: of the program's outputs. ``digest``: of all that the program does and of the
    constants that it made itself. No value of a state dict is in it, no file and no line of code.
    """

    program: ExportedProgram
    names: tuple[str, ...]
    cuts: tuple[Cut, ...]
    digest: str


def trace_program(model: AttachedModel) -> TracedProgram:
    """Return the program of ``model``'s forward in evaluation mode, with a dynamic batch.

    Raises CaptureError when PyTorch cannot write it down (a Python ``if`` on a tensor is named as
    such), and when its answer for a picture depends on the others in the batch.
    """
    model.train(False)
    _check_runs_batches(model)
    notes = _Notes([], [])
    program = _traced(_Recorder(model, notes), model.anatomy.input_shape)
    return TracedProgram(program, tuple(notes.names), tuple(notes.cuts), _digest(program))


@dataclass(slots=True)
class _Notes:
    """What the traced forward notes about itself.

    It is no attribute of the module, because the exporter restores those after it has traced.
    """

    names: list[str]
    cuts: list[Cut]


class _Recorder(nn.Module):
    """Return every cut point as an output, each tensor once, and note the names given."""

    def __init__(self, model: AttachedModel, notes: _Notes) -> None:
        super().__init__()
        self.model = model
        self.notes = notes

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        # One tensor can stand at two cut points (one block's result is the next block's input). A
        # graph gives each value one name, so the first name counts.
        trace = self.model.trace(image)
        named = _NamedTensors(image)
        self.notes.cuts[:] = [
            _site_cut(name, site, trace, named) for name, site in self.model.anatomy.named_sites()
        ]
        named.give(FEATURES, trace.features)
        named.give(LOGITS, trace.logits)
        # The picture is the graph's input: as an output it would take that name from it.
        outputs = {name: tensor for name, tensor in named.tensors.items() if name != IMAGE}
        self.notes.names[:] = list(outputs)
        return tuple(outputs.values())


class _NamedTensors:
    """Tensors by name; a tensor that has a name keeps it. A first block may read the picture."""

    def __init__(self, image: Tensor) -> None:
        self.tensors: dict[str, Tensor] = {IMAGE: image}

    def give(self, name: str, tensor: Tensor | None) -> str:
        assert tensor is not None
        for known, other in self.tensors.items():
            if other is tensor:
                return known
        self.tensors[name] = tensor
        return name


def _site_cut(name: str, site: Site, trace: Trace, named: _NamedTensors) -> Cut:
    """Name one site's tensors; an input that an earlier site returned keeps that name."""
    source = named.give(f"in.{name}", trace.inputs[name])
    output = named.give(f"block.{name}", trace.outputs[name])
    if name in trace.corrections:
        named.give(f"adaptor.{name}", trace.corrections[name])
        named.give(f"out.{name}", trace.results[name])
    if name in trace.gates:
        named.give(f"gate.{name}", trace.gates[name])
    return Cut(
        name, site.name, source, output, site.layout, site.in_shape, site.out_shape, site.flops
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the exporter prints, and the deprecation warnings of its dependencies."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def noise(model: AttachedModel, count: int = 2) -> Floats:
    """Return fixed pictures of normal noise, float32 ``[count, C, H, W]``.

    Two are enough to look at every node of a graph without control flow.
    """
    shape = (count, *model.anatomy.input_shape)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _check_runs_batches(model: AttachedModel) -> None:
    """Run two pictures together, then the first one alone.

    Both runs must answer alike, and neither may change the backbone. This comes before the
    exporter, whose messages say little about a module that takes only one picture.
    """
    pictures = torch.from_numpy(noise(model))
    before = {name: t.clone() for name, t in model.backbone.state_dict().items()}
    try:
        with torch.no_grad():
            both = _cut_points(model, pictures)
    except (RuntimeError, ValueError, IndexError, AssertionError) as err:
        raise CaptureError(
            f"the model fixes the batch size: it does not run on two pictures: {_first_line(err)}",
            fix=FREE_BATCH,
        ) from err
    _check_unchanged(before, model.backbone)
    if not torch.equal(pictures, torch.from_numpy(noise(model))):
        raise CaptureError(
            "the model writes into the picture that it gets, expected one that reads it alone",
            fix="write x = x - mean in place of x -= mean, and set inplace=False on its first "
            "activation",
        )
    with torch.no_grad():
        alone = _cut_points(model, pictures[:1])
        if name := _differs(alone, {key: value[:1] for key, value in both.items()}):
            raise _unsteady(name, _differs(_cut_points(model, pictures), both))


def _cut_points(model: AttachedModel, pictures: Tensor) -> dict[str, Tensor]:
    """Return what each block and the head answer, in the order of the forward."""
    trace = model.trace(pictures)
    assert trace.logits is not None
    named = {site.name: trace.outputs[name] for name, site in model.anatomy.named_sites()}
    return {**named, LOGITS: trace.logits}


def _check_unchanged(before: dict[str, Tensor], backbone: nn.Module) -> None:
    for name, tensor in backbone.state_dict().items():
        # torch.equal calls NaN unequal to itself, and a frozen NaN has not changed.
        if not torch.equal(tensor.nan_to_num(), before[name].nan_to_num()):
            raise CaptureError(
                f"backbone tensor {name!r} changes in an evaluation forward, expected a frozen one",
                fix="write to it in training mode only, or take the counter out",
            )


def _differs(answers: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Return the first cut point whose answers differ by more than rounding, or nothing."""
    for name, value in answers.items():
        want = expected[name]
        allowed = NEIGHBOUR_TOLERANCE * float(want.abs().max())
        if value.shape != want.shape or float((value - want).abs().max()) > allowed:
            return name
    return ""


def _unsteady(name: str, again: str) -> CaptureError:
    """Return what is wrong with ``name``; ``again``: what differs where nothing was changed."""
    if again:
        return CaptureError(
            f"{again!r} answers the same pictures otherwise each time it runs: expected an answer "
            "that no random number is part of",
            fix="draw none in evaluation: F.dropout(x, p, training=self.training)",
        )
    return CaptureError(
        f"{name!r} answers a picture otherwise alone than beside another one: "
        "expected an answer for each sample that its neighbours do not change",
        fix="take no mean, norm or sum over the batch dimension in evaluation, and compute in "
        "float32: under autocast the rounding depends on the batch",
    )


def _traced(recorder: _Recorder, shape: tuple[int, ...]) -> ExportedProgram:
    first: Exception | None = None
    for least in (1, 2):
        # In strict mode PyTorch reads the bytecode. Some models are captured by that alone.
        for strict in (False, True):
            try:
                return _exported(recorder, shape, least=least, strict=strict)
            # PyTorch raises whatever its many passes raise, with no base class of their own.
            except Exception as err:
                first = first or err
        # PyTorch refuses a batch of one where it asks how a map lies in memory: with one picture, a
        # transposed map lies as the map itself does. A graph knows no such thing, so the program of
        # two pictures and more is the same. The proof of the halves runs one picture as well.
        if first is not None and not _is_about_batch(first):
            break
    assert first is not None
    raise capture_error(first) from first


def _exported(
    recorder: _Recorder, shape: tuple[int, ...], *, least: int, strict: bool
) -> ExportedProgram:
    """Return PyTorch's program for batches of ``least`` pictures and more."""
    batch = torch.export.Dim("batch", min=least, max=MAX_BATCH)
    # Two pictures: an exporter takes a dimension of one for a constant, whatever it is told.
    example = (torch.zeros(2, *shape),)
    with (
        quiet(),
        torch.no_grad(),
        # What holds for two pictures may not be taken for granted of one. torch.onnx.export sets
        # this as well.
        _config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        # PyTorch's choice among its fused kernels asks whether the batch is one.
        sdpa_kernel(SDPBackend.MATH),
        _FlatAttention(),
    ):
        return torch.export.export(recorder, example, dynamic_shapes=({0: batch},), strict=strict)


class _FlatAttention(TorchFunctionMode):
    """Run fused attention on ``[N, heads, length, width]``, the only shape that has a translation.

    Nets with windows have more dimensions in front (Twins, Hiera), simple ones fewer.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _flat_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _flat_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *rest: Any,
    **more: Any,
) -> Tensor:
    attend: Any = F.scaled_dot_product_attention
    tensors = (query, key, value)
    result: Tensor
    if query.dim() == 3:
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unsqueeze(1)
        result = attend(*(t.unsqueeze(1) for t in tensors), attn_mask, *rest, **more).squeeze(1)
        return result
    if query.dim() <= 4:
        result = attend(*tensors, attn_mask, *rest, **more)
        return result
    front = query.shape[:-3]

    def flattened(tensor: Tensor) -> Tensor:
        return tensor.expand(*front, *tensor.shape[-3:]).flatten(0, -4)

    if attn_mask is not None and attn_mask.dim() > 2:
        attn_mask = flattened(attn_mask)
    result = attend(*map(flattened, tensors), attn_mask, *rest, **more)
    # The batch's size is left open, as a block also runs on the rows whose gate is open.
    return result.reshape(-1, *front[1:], *result.shape[-3:])


def _digest(program: ExportedProgram) -> str:
    """Return the digest of what a program does; a second or less, and no time in the exporter.

    The text of the graphs names every operator with its arguments, in order. The signature says
    which input is which tensor of the state dict. Constants that the forward made are in no state
    dict, so their bytes count.
    """
    graphs = [m for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    constants = {
        name: _tensor_digest(tensor) if isinstance(tensor, Tensor) else repr(tensor)
        for name, tensor in program.constants.items()
        if name not in program.state_dict
    }
    document = {
        "graphs": [str(module.graph) for module in graphs],
        "signature": str(program.graph_signature),
        "ranges": str(program.range_constraints),
        "constants": constants,
    }
    return digest.sha256(canonical_json(document))


def _tensor_digest(tensor: Tensor) -> str:
    # As bytes: a constant may have a type that numpy lacks.
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return digest.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode() + data.tobytes())


def _causes(err: Exception) -> list[BaseException]:
    """Return an error and its causes: the exporter wraps it; the last says what happened."""
    causes: list[BaseException] = []
    cause: BaseException | None = err
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    return causes


def _is_about_batch(err: Exception) -> bool:
    text = " ".join(map(str, _causes(err)))
    return "Constraints violated" in text or "specialized" in text


def capture_error(err: Exception) -> CaptureError:
    """Return the error that says for a user what PyTorch's exporter raised, with a fix."""
    causes = _causes(err)
    text = " ".join(map(str, causes))
    if "data-dependent" in text or "DataDependent" in text or "GuardOn" in text:
        return CaptureError(
            "a Python `if`, loop or int() depends on a tensor's value, which no ONNX graph without "
            f"control flow can hold: {_first_line(causes[-1])}",
            fix="compute both sides and select with torch.where",
        )
    if _is_about_batch(err):
        return CaptureError(
            f"the model fixes the batch size while it is traced: {_first_line(causes[-1])}",
            fix=FREE_BATCH,
        )
    if missing := _NO_TRANSLATION.search(text):
        return CaptureError(
            f"PyTorch's exporter {torch.__version__} has no ONNX for the operator "
            f"{missing['operator']}",
            fix="write it with other operators",
        )
    report = "torch.export.export(model, (x,))"
    if isinstance(err, torch.onnx.errors.OnnxExporterError):
        report = "torch.onnx.export(model, (x,), dynamo=True, report=True)"
    return CaptureError(
        f"PyTorch's exporter could not capture the model: {_first_line(causes[-1])}",
        fix=f"run {report} on it alone for the full report",
    )


def _first_line(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0] if lines else type(err).__name__
