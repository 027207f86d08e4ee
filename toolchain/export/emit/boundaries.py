"""Name the nodes of branches so that every ONNX parser makes exactly the right boundaries.

Rules of this file: names and ``Identity`` nodes, no arithmetic; the answers stay as they are, bit
for bit. It is the last pass over a graph: what runs after it may not rename or add nodes inside a
branch. Whether a parser really made the boundaries is counted after parsing, on the network.

In TensorRT a branch is skipped only if every tensor from outside enters it through a conditional
input layer (``IIfConditionalInputLayer``, NVIDIA's developer guide, "Working with Conditionals").
The parser makes these layers, one per conditional and outer tensor, shared by both branches. How
it finds the readers of outer tensors (onnx-tensorrt, ConditionalHelpers.cpp):

* 8.2 and 8.4: a layer's inputs are gathered in a copy that is thrown away, so no reader is found
  and **no boundary is made, whatever the names are**. Naming cannot help there.
* 8.5: readers are kept by layer name. A layer whose name *begins with* a reader's name is taken for
  that reader, so ``v1`` also stands for ``v12``. The branch's result is found in the same way: a
  layer whose name begins with that of the layer which makes the result counts as a further result,
  and comes first if it runs first (``out/up`` before ``out``), so that **the answer is wrong**.
* 8.6 to 10.5: readers are kept by the outer tensor's name; a layer is taken for a reader if *its*
  name begins with that tensor's name; input places of all readers of a tensor are merged, and of
  several fitting tensors the first in an unordered table counts.
* from 10.6: by the tensors themselves.

So here each outer tensor is read in a branch by one ``Identity`` alone, whose name begins with the
tensor's, at its only input; all other nodes of the branch are called so that neither an outer
tensor's name nor another node's begins theirs. Whatever the order of the table, each rule from 8.5
on finds the Identity nodes, place 0, and nothing else, and one result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from toolchain.core.errors import ModelRefusedError
from toolchain.export.emit.rewrite import (
    Draft,
    branches,
    conditionals,
    copied,
    finish,
    graphs,
    infer,
)
from toolchain.export.graph.builder import value_name

# Only their being in none of the names counts; the first are the ones that read well.
_ENDINGS = "/|~:;!@"
_FIRSTS = "_~^!;"


def name_boundaries(model: ir.Model) -> ir.Model:
    """Return a copy whose branches enter by named ``Identity`` nodes; see this file's docstring.

    Constants that several graphs share are copied into each branch under names of their own: 8.2
    mixes equal names of branches up (onnx-tensorrt, changelog of 8.5), and later parsers make one
    layer of them, which then lies outside. The gate's ``Reshape`` to a scalar becomes a ``Squeeze``
    of constant axes, since the newest parser warns of an empty constant. Raises ModelRefusedError
    for conditionals inside branches.
    """
    named = infer(copied(model))
    _refuse_nested(named)
    for node in conditionals(named):
        for _, branch in branches(node):
            _own_constants(named, branch)
    _squeeze_flags(named)
    outer = sorted({value_name(v) for node in conditionals(named) for v in entering(node)})
    ending = _absent(outer, _ENDINGS, inside=True)
    first = _absent(outer, _FIRSTS, inside=False)
    for node in conditionals(named):
        for _, branch in branches(node):
            _enter(branch, ending, first)
    return finish(named)


def expected_boundaries(model: ir.Model) -> int:
    """Return how many conditional input layers the model's network must have.

    One per conditional and outer tensor that either branch reads: every parser shares the layer
    between the branches of one conditional.
    """
    return sum(len(entering(node)) for node in conditionals(model))


def entering(node: ir.Node) -> list[ir.Value]:
    """Return the outer tensors, constants apart, that the branches of an ``If`` read."""
    values: dict[int, ir.Value] = {}
    for _, branch in branches(node):
        for value in _outer(branch):
            if not _constant(value):
                values.setdefault(id(value), value)
    return list(values.values())


def _constant(value: ir.Value) -> bool:
    maker = value.producer()
    return value.const_value is not None or (maker is not None and maker.op_type == "Constant")


def _outer(branch: ir.Graph) -> list[ir.Value]:
    """Return every value from around that the branch reads or passes on, each once."""
    own = {id(value) for value in (*branch.inputs, *branch.initializers.values())}
    own |= {id(value) for node in branch for value in node.outputs}
    read = [value for node in branch for value in node.inputs if value is not None]
    fresh = {id(v): v for v in (*read, *branch.outputs) if id(v) not in own}
    return list(fresh.values())


def _refuse_nested(model: ir.Model) -> None:
    for graph in list(graphs(model.graph))[1:]:
        for node in graph:
            if any(True for _ in branches(node)):
                raise ModelRefusedError(
                    f"node {node.name!r} ({node.op_type}) is a conditional inside the branch "
                    f"{graph.name!r}, expected none",
                    fix="leave modules with control flow of their own out of blocks",
                )


def _own_constants(model: ir.Model, branch: ir.Graph) -> None:
    """Give the branch copies of outer constants, and names that no other graph uses."""
    elsewhere = {
        name for graph in graphs(model.graph) if graph is not branch for name in _names(graph)
    }
    for value in _outer(branch):
        if _constant(value):
            _adopt(branch, value)
    for name, value in list(branch.initializers.items()):
        if name in elsewhere:
            value.name = _unused(f"{branch.name}/{name}", elsewhere | set(branch.initializers))


def _names(graph: ir.Graph) -> Iterator[str]:
    yield from graph.initializers
    for node in graph:
        yield from (value_name(value) for value in node.outputs)


def _adopt(branch: ir.Graph, value: ir.Value) -> None:
    maker = value.producer()
    tensor = value.const_value
    if tensor is None:
        assert maker is not None
        tensor = maker.attributes["value"].as_tensor()
    name = _unused(f"{branch.name}/{value_name(value)}", set(branch.initializers))
    own = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    branch.register_initializer(own)
    _redirect(branch, value, own)


def _redirect(branch: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let the branch's nodes and results take ``new`` for ``old``."""
    for node in branch:
        for place, value in enumerate(node.inputs):
            if value is old:
                node.replace_input_with(place, new)
    for place, value in enumerate(branch.outputs):
        if value is old:
            branch.outputs[place] = new


def _squeeze_flags(model: ir.Model) -> None:
    """Write the reshape of each gate's answer to a scalar as a Squeeze of all its axes."""
    for node in conditionals(model):
        flag = node.inputs[0]
        maker = None if flag is None else flag.producer()
        if maker is None or maker.op_type != "Reshape" or maker.inputs[0] is None:
            continue
        target, source = maker.inputs[1], maker.inputs[0]
        scalar = target is not None and target.const_value is not None
        if not scalar or target.const_value.size != 0 or source.shape is None:  # type: ignore[union-attr]
            continue
        draft = Draft(maker)
        axes = draft.constant(np.arange(len(source.shape)), np.int64)
        draft.replace(draft.node("Squeeze", [source, axes]))


def _enter(branch: ir.Graph, ending: str, first: str) -> None:
    """Put one Identity per outer tensor at the branch's beginning and rename the other nodes.

    Numbers of equal width keep every name from beginning another one.
    """
    width = len(str(len(branch)))
    for number, node in enumerate(branch):
        called = node.name or value_name(node.outputs[0])
        node.name = f"{first}/{branch.name}/{number:0{width}}/{called}"
    for value in _outer(branch):
        name = f"{value_name(value)}{ending}{branch.name}"
        own = ir.Value(name=name, type=value.type, shape=value.shape)
        _redirect(branch, value, own)
        start = ir.Node("", "Identity", [value], outputs=[own], name=name)
        if len(branch) == 0:
            branch.append(start)
        else:
            branch.insert_before(branch[0], start)


def _absent(names: Iterable[str], wishes: str, *, inside: bool) -> str:
    """Return a character that is in none of ``names``, or with which none begins."""
    taken = set("".join(names)) if inside else {name[:1] for name in names}
    more = (chr(code) for code in range(0xA1, 0xFFFF))
    character: str = next(c for c in (*wishes, *more) if c not in taken)
    return character


def _unused(name: str, taken: set[str]) -> str:
    fresh, count = name, 0
    while fresh in taken:
        count += 1
        fresh = f"{name}/{count}"
    return fresh
