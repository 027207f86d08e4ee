"""Capture an attached model as one ONNX graph without control flow.

Rules of this file: it captures in two steps. :func:`trace_program` lets PyTorch write down what the
model's forward does, and takes a digest of that; :func:`translate` makes ONNX of it, which takes
several times as long. The exporter runs with ``optimize=False``, the only setting that neither
renames, re-values nor merges initializers. Every cut point is a named value. Domain tensors become
graph inputs while constants are folded, so that folding cannot reach them. It does not split or
link, and gates stay dense here (``Where``): the linker adds the control flow.

Initializers are called as in the state dict: the backbone's behind ``backbone.``, the domain's by
slot name. Cut points are named as in :mod:`toolchain.export.graph.names`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
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
from toolchain.export.graph.fold import fix_reshapes, merge_twins
from toolchain.export.graph.names import (
    BACKBONE,
    DIALECT,
    FEATURES,
    IMAGE,
    LOGITS,
    Cut,
    Opset,
)
from toolchain.training.adapt.attached import AttachedModel, Trace, domain_state
from toolchain.training.adapt.blocks import Site

MAX_BATCH = 4096
FOLD_LIMIT_ELEMENTS = 1 << 16
NEIGHBOUR_TOLERANCE = 1e-3
"""How far, of its own range, an answer may move when a picture is run alone: rounding only."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One graph, all of whose initializers carry their PyTorch names and values."""

    model: ir.Model
    opset: Opset
    cuts: tuple[Cut, ...]
    slots: tuple[str, ...]


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


def capture(model: AttachedModel) -> Captured:
    """Capture ``model`` in evaluation mode with a dynamic batch.

    Raises CaptureError when the exporter cannot trace it (a Python ``if`` on a tensor is named as
    such), or when an initializer differs from its PyTorch tensor.
    """
    return translate(model, trace_program(model))


def trace_program(model: AttachedModel) -> TracedProgram:
    """Return the program of ``model``'s forward in evaluation mode, with a dynamic batch.

    Raises CaptureError as :func:`capture`.
    """
    model.train(False)
    _check_runs_batches(model)
    notes = _Notes([], [])
    program = _traced(_Recorder(model, notes), model.anatomy.input_shape)
    return TracedProgram(program, tuple(notes.names), tuple(notes.cuts), _digest(program))


def translate(model: AttachedModel, traced: TracedProgram) -> Captured:
    """Return the program of ``model`` as a graph. Raises CaptureError as :func:`capture`."""
    program = _translated(traced.program, DIALECT)
    for value, name in zip(program.graph.outputs, traced.names, strict=True):
        value.name = name
    _check_free_batch(program)
    program.ir_version = DIALECT.ir_version
    slots = tuple(domain_state(model))
    _rename_initializers(program)
    _check_one_to_one(program, model)
    _clean(program, slots)
    _check_cuts(program, list(traced.names))
    return Captured(program, DIALECT, traced.cuts, slots)


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
    """Return fixed pictures of noise: two are enough for every node without control flow."""
    shape = (count, *model.anatomy.input_shape)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


_FIXED_BATCH = "write x.shape[0] or -1 in place of a number, and do not loop over the batch"


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
            fix=_FIXED_BATCH,
        ) from err
    _check_unchanged(before, model.backbone)
    with torch.no_grad():
        _check_alone(_cut_points(model, pictures[:1]), both)


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


def _check_alone(alone: dict[str, Tensor], both: dict[str, Tensor]) -> None:
    for name, one in alone.items():
        want = both[name][:1]
        allowed = NEIGHBOUR_TOLERANCE * float(want.abs().max())
        if one.shape != want.shape or float((one - want).abs().max()) > allowed:
            raise CaptureError(
                f"{name!r} answers a picture otherwise alone than beside another one: "
                "expected an answer for each sample that its neighbours do not change",
                fix="take no mean, norm or sum over the batch dimension in evaluation",
            )


def _check_free_batch(program: ir.Model) -> None:
    """Refuse a fixed batch: the exporter may silently fix it to that of its example."""
    for value in program.graph.outputs:
        if value.shape is None or isinstance(value.shape[0], int):
            raise CaptureError(
                f"the model fixes the batch size while it is traced: {value.name!r} has the shape "
                f"{value.shape}, expected a free first dimension",
                fix=_FIXED_BATCH,
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
    raise _capture_error(first) from first


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


def _translated(program: ExportedProgram, dialect: Opset) -> ir.Model:
    try:
        with quiet(), torch.no_grad():
            translated = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                opset_version=dialect.opset,
                input_names=[IMAGE],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as err:
        raise _capture_error(err) from err
    assert translated is not None
    return translated.model


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


def _capture_error(err: Exception) -> CaptureError:
    causes = _causes(err)
    text = " ".join(map(str, causes))
    if "data-dependent" in text or "DataDependent" in text or "GuardOn" in text:
        return CaptureError(
            "a Python `if`, loop or int() depends on a tensor's value, which no ONNX graph without "
            f"control flow can hold: {_first_line(causes[-1])}",
            fix="compute both sides and select with torch.where, or leave the module out of blocks",
        )
    if _is_about_batch(err):
        return CaptureError(
            f"the model fixes the batch size while it is traced: {_first_line(causes[-1])}",
            fix=_FIXED_BATCH,
        )
    return CaptureError(
        f"PyTorch's exporter could not capture the model: {_first_line(causes[-1])}",
        fix="run torch.export.export(model, (x,)) on it alone for the full report",
    )


def _first_line(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0] if lines else type(err).__name__


def _rename_initializers(model: ir.Model) -> None:
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        # The recorder holds the attached model as ``model``, and that holds the domain as
        # ``domain``.
        bare = name.removeprefix("model.").removeprefix("domain.")
        if bare != name:
            value.name = bare


def _check_one_to_one(program: ir.Model, model: AttachedModel) -> None:
    """Check the exporter's work: each tensor once, under its own name, bit for bit.

    The split cuts by name. An exporter that renames, merges or changes a tensor would make a split
    that is wrong and looks right.
    """
    initializers = program.graph.initializers
    domain = domain_state(model)
    for name, tensor in {
        **{BACKBONE + k: v for k, v in model.backbone.state_dict().items()},
        **domain,
    }.items():
        if name not in initializers:
            if name in domain:
                raise CaptureError(
                    f"slot {name!r} did not reach the graph",
                    fix="use the adaptor's output; a slot that changes nothing cannot be swapped",
                )
            continue  # a backbone tensor that no output needs (the replaced classifier)
        value = initializers[name].const_value
        assert value is not None
        want = tensor.detach().numpy()
        got = value.numpy()
        same = got.dtype == want.dtype and got.shape == want.shape
        if not (same and np.array_equal(got, want, equal_nan=True)):
            raise CaptureError(
                f"initializer {name!r} differs from its PyTorch tensor",
                fix="pin torch and onnxscript to the versions in constraints.txt",
            )


def _clean(model: ir.Model, slots: tuple[str, ...]) -> None:
    """Fold the exporter's shape arithmetic and drop dead nodes; slots are out of reach."""
    graph = model.graph
    # Folding works on what has a value. As inputs without one, the slots stay as they are: equal
    # ones are not merged, and nothing that depends on a domain becomes part of the structure.
    slot_values = {name: graph.initializers.pop(name) for name in slots}
    constants = {name: value.const_value for name, value in slot_values.items()}
    for value in slot_values.values():
        value.const_value = None
        graph.inputs.append(value)
    with quiet():
        passes.RemoveUnusedNodesPass()(model)
        optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=FOLD_LIMIT_ELEMENTS,
            output_size_limit=FOLD_LIMIT_ELEMENTS,
        )
        fix_reshapes(model)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        passes.IdentityEliminationPass()(model)
        merge_twins(model)
        passes.RemoveUnusedNodesPass()(model)
    for name, value in slot_values.items():
        graph.inputs.remove(value)
        value.const_value = constants[name]
        graph.register_initializer(value)
    passes.TopologicalSortPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)


def _check_cuts(model: ir.Model, names: list[str]) -> None:
    """Cleaning may not rename, merge or drop an output."""
    left = [value.name for value in model.graph.outputs]
    if left != names:
        lost = sorted(set(names) - {name or "" for name in left})
        raise CaptureError(
            f"cut points {lost} were lost while the graph was cleaned",
            fix="a block that returns its input untouched cannot be cut: leave it out of blocks",
        )
