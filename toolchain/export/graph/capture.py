"""Translate a model's program into one ONNX graph without control flow.

Rules of this file: :mod:`toolchain.export.graph.program` writes the program; ONNX is made of it
here, which takes several times as long. The exporter runs with ``optimize=False``, the only setting
that neither renames, re-values nor merges initializers. Every cut point is a named value. Domain
tensors become graph inputs while constants are folded, so that folding cannot reach them. It does
not split or link, and gates stay dense here (``Where``): the linker adds the control flow.

Initializers are called as in the state dict: the backbone's behind ``backbone.``, the domain's by
slot name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch.export import ExportedProgram

from toolchain.core.errors import CaptureError
from toolchain.export.graph.fold import fix_reshapes, merge_twins
from toolchain.export.graph.names import BACKBONE, DIALECT, IMAGE, Cut, Opset
from toolchain.export.graph.program import (
    FREE_BATCH,
    TracedProgram,
    capture_error,
    quiet,
    trace_program,
)
from toolchain.training.adapt.attached import AttachedModel, domain_state

FOLD_LIMIT_ELEMENTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Captured:
    """One graph, all of whose initializers carry their PyTorch names and values."""

    model: ir.Model
    opset: Opset
    cuts: tuple[Cut, ...]
    slots: tuple[str, ...]


def capture(model: AttachedModel) -> Captured:
    """Capture ``model`` in evaluation mode with a dynamic batch.

    Raises CaptureError when the exporter cannot trace it (a Python ``if`` on a tensor is named as
    such), or when an initializer differs from its PyTorch tensor.
    """
    return translate(model, trace_program(model))


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


def _check_free_batch(program: ir.Model) -> None:
    """Refuse a fixed batch: the exporter may silently fix it to that of its example."""
    for value in program.graph.outputs:
        if value.shape is None or isinstance(value.shape[0], int):
            raise CaptureError(
                f"the model fixes the batch size while it is traced: {value.name!r} has the shape "
                f"{value.shape}, expected a free first dimension",
                fix=FREE_BATCH,
            )


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
        raise capture_error(err) from err
    assert translated is not None
    return translated.model


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
