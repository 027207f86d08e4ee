"""Fold frozen BatchNorms into convolutions; fix the targets of reshapes; merge twins of cut points.

Rules of this file: it requires a captured graph. It touches the backbone's tensors only, and never
reads or renames a slot. What is folded gets a new name (``<weight>+bn``), so that no name lies
about its values. It ensures the same outputs up to rounding; the caller verifies this by running
both. It leaves a BatchNorm that has no convolution of its own before it.
"""

from __future__ import annotations

import math
from itertools import chain, count

import numpy as np
import onnx_ir as ir

from toolchain.export.graph.builder import input_names, value_name
from toolchain.export.graph.names import BACKBONE

_SMALL = 64
"""Elements of a constant that is compared by its values: shapes and axes, no weights."""


def fold_batchnorm(model: ir.Model) -> int:
    """Fold in place and return how many were folded.

    ``W' = W * s``, ``b' = (b - mean) * s + beta`` with ``s = gamma / sqrt(var + eps)``, computed in
    float64 and rounded once (ONNX operator BatchNormalization-15, inference mode).
    """
    graph = model.graph
    outputs = {value_name(v) for v in graph.outputs}
    folded = 0
    for norm in [n for n in graph if n.op_type == "BatchNormalization"]:
        conv = _own_convolution(norm, outputs)
        if conv is not None and _is_frozen(graph, conv, norm):
            _fold(graph, conv, norm)
            folded += 1
    # The norms' tensors and the unfolded kernels have lost their readers.
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return folded


def _own_convolution(norm: ir.Node, outputs: set[str]) -> ir.Node | None:
    """Return the convolution that feeds ``norm`` alone; None if others see its output."""
    source = norm.inputs[0]
    assert source is not None
    conv = source.producer()
    # The fold changes what the convolution gives: nobody but the norm may read that, and it may be
    # no output of the graph (a cut point).
    alone = len(source.uses()) == 1 and value_name(source) not in outputs
    return conv if conv is not None and conv.op_type == "Conv" and alone else None


def _is_frozen(graph: ir.Graph, conv: ir.Node, norm: ir.Node) -> bool:
    """All of the norm's tensors and the kernel are the backbone's; the bias may be anonymous."""
    names = [input_names(conv)[1], *input_names(norm)[1:]]
    initializers = graph.initializers
    return all(name.startswith(BACKBONE) and name in initializers for name in names)


def _array(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _fold(graph: ir.Graph, conv: ir.Node, norm: ir.Node) -> None:
    kernel = conv.inputs[1]
    assert kernel is not None
    gamma, beta, mean, var = (_array(v) for v in norm.inputs[1:5])
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    scale = gamma / np.sqrt(var + epsilon)
    bias = _array(conv.inputs[2]) if len(conv.inputs) > 2 else np.zeros_like(mean)
    weights = _array(kernel) * scale.reshape(-1, *(1,) * (kernel.const_value.numpy().ndim - 1))  # type: ignore[union-attr]
    base = value_name(kernel)
    conv.replace_input_with(1, _register(graph, f"{base}+bn", weights))
    shifted = _register(
        graph, f"{base.removesuffix('.weight')}.bias+bn", (bias - mean) * scale + beta
    )
    if len(conv.inputs) > 2:
        conv.replace_input_with(2, shifted)
    else:
        conv.resize_inputs(3)
        conv.replace_input_with(2, shifted)
    # The convolution's output takes the norm's place under the norm's name: cut points are found by
    # name, and this may be one.
    result = norm.outputs[0]
    source = conv.outputs[0]
    name = result.name
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    source.shape, source.type = result.shape, result.type
    graph.remove(norm, safe=True)
    source.name = name


def _register(
    graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> ir.Value:
    # Convolutions may share a kernel, each before a norm of its own.
    names = chain([name], (f"{name}{number}" for number in count(2)))
    free = next(one for one in names if one not in graph.initializers)
    tensor = ir.Tensor(array.astype(np.float32), name=free)
    value = ir.Value(
        name=free, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )
    graph.register_initializer(value)
    return value


def fix_reshapes(model: ir.Model) -> int:
    """Write the target of each Reshape whose result has one free dimension as a constant.

    The exporter computes such targets from the batch size at run time; as ``-1`` the free dimension
    needs no arithmetic, and no node of one half feeds the other's shapes. Returns how many.
    """
    graph, fixed = model.graph, 0
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[1] is None:
            continue
        shape = node.outputs[0].shape
        if node.inputs[1].const_value is not None or shape is None:
            continue
        target = _one_free(shape)
        if target is not None:
            tensor = ir.Tensor(np.asarray(target, np.int64), name=f"{node.name}_target")
            value = ir.Value(
                name=tensor.name,
                type=ir.TensorType(tensor.dtype),
                shape=tensor.shape,
                const_value=tensor,
            )
            graph.register_initializer(value)
            node.replace_input_with(1, value)
            fixed += 1
    return fixed


def _one_free(shape: ir.Shape) -> list[int] | None:
    dims = [d if isinstance(d, int) else -1 for d in shape]
    # A Reshape can work out one -1 only, and it reads 0 as "copy this size from the input".
    return dims if dims.count(-1) == 1 and math.prod(dims) != 0 else None


def merge_twins(model: ir.Model) -> int:
    """Let who reads a second computation of an output's value read the output. Returns how many.

    Behind a write in place PyTorch writes the views of that tensor down anew for each reader. The
    cut is by name, so a block's input may not have a second name. Others than outputs stay twice:
    what a block and an adaptor both compute has to stay in both halves.
    """
    graph = model.graph
    outputs = {value_name(v) for v in graph.outputs}
    numbers: dict[object, int] = {}

    def number(value: ir.Value | None) -> int:
        content: object = value
        # Never by the values of the backbone's tensors: another backbone has other ones.
        if value is not None and not value_name(value).startswith(BACKBONE):
            constant = value.const_value
            if constant is not None and constant.size <= _SMALL:
                content = (constant.dtype, tuple(constant.shape), constant.tobytes())
        return numbers.setdefault(content, len(numbers))

    same: dict[int, list[ir.Value]] = {}
    for node in graph:
        inputs = tuple(map(number, node.inputs))
        options = tuple(sorted((name, repr(a.value)) for name, a in node.attributes.items()))
        for index, value in enumerate(node.outputs):
            key = (node.op_identifier(), options, inputs, index)
            numbers[value] = numbers.setdefault(key, len(numbers))
            same.setdefault(numbers[value], []).append(value)
    merged = 0
    for values in same.values():
        cut = next((v for v in values if value_name(v) in outputs), None)
        for twin in values:
            if cut is not None and value_name(twin) not in outputs:
                twin.replace_all_uses_with(cut)
                merged += 1
    return merged
