"""Name the nodes of branches so that every ONNX parser makes exactly the right boundaries.

Rules of this file: it changes names and adds ``Identity`` nodes, and computes nothing. The answers
stay the same, bit for bit. It is the last pass over a graph: a later pass must not rename or add
nodes inside a branch. It does not prove that a parser made the boundaries;
:mod:`toolchain.device.engine.conditionals` counts them in the parsed network.

TensorRT skips a branch only if every tensor from outside enters it through a conditional input
layer (``IIfConditionalInputLayer``; NVIDIA's developer guide, "Working with Conditionals"). The
parser makes these layers: one for each conditional and outer tensor, which both branches share. To
make one, it must find the layers that read an outer tensor. How it finds them depends on its
version (onnx-tensorrt, ConditionalHelpers.cpp):

* 8.2 and 8.4 collect a layer's inputs in a copy and throw the copy away. They find no reader and
  **make no boundary, whatever the names are**. Names cannot help there.
* 8.5 keeps readers by layer name. It takes a layer for a reader if the layer's name *begins with* a
  reader's name, so ``v1`` also stands for ``v12``. It finds the branch's result in the same way: a
  layer whose name begins with the name of the layer that makes the result counts as a result too.
  If that layer runs first (``out/up`` before ``out``), **the answer is wrong**.
* 8.6 to 10.5 keep readers by the outer tensor's name. They take a layer for a reader if *the
  layer's* name begins with that tensor's name. They merge the input places of all readers of a
  tensor. If several tensors fit, the first in an unordered table counts.
* 10.6 and later compare the tensors themselves.

So this pass lets one ``Identity`` read each outer tensor in a branch, at its only input. The name
of the ``Identity`` begins with the tensor's name. All other nodes of the branch get names that
begin neither with an outer tensor's name nor with another node's. Then every rule from 8.5 on finds
the Identity nodes at place 0, nothing else, and one result, whatever the order of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

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

# Any character will do that is in none of the names. Those that read well come first.
_ENDINGS = "/|~:;!@"
_FIRSTS = "_~^!;"


def name_boundaries(model: ir.Model) -> ir.Model:
    """Return a copy whose branches enter by named ``Identity`` nodes; see this file's docstring.

    Each branch gets its own copy of a constant that several graphs share, under a name of its own:
    8.2 mixes up equal names in two branches (onnx-tensorrt, changelog of 8.5), and later parsers
    make one layer of both, which then lies outside. The gate's ``Reshape`` to a scalar becomes a
    ``Squeeze`` of constant axes, because the newest parser warns of an empty constant. Raises
    ModelRefusedError for a conditional inside a branch.
    """
    named = infer(copied(model))
    _refuse_nested(named)
    # Constants first: a constant that a branch owns does not enter it, and needs no Identity.
    for node in conditionals(named):
        for _, branch in branches(node):
            _own_constants(named, branch)
    _squeeze_flags(named)
    # One separator for the whole model, which is in no outer tensor's name. So the name of an
    # Identity never begins with the name of a tensor that is longer than its own tensor's.
    outer = sorted({value_name(v) for node in conditionals(named) for v in entering(node)})
    ending = _absent(outer, _ENDINGS, inside=True)
    first = _absent(outer, _FIRSTS, inside=False)
    for node in conditionals(named):
        for _, branch in branches(node):
            _enter(branch, ending, first)
    return finish(named)


def expected_boundaries(model: ir.Model) -> int:
    """Return how many conditional input layers the model's network must have.

    That is one for each conditional and each outer tensor that one of its branches reads: every
    parser shares the layer between the two branches.
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
    """Return every outer value that the branch reads or passes on, each once."""
    # By identity: two branches may use one name for two values.
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
    # Names of the other graphs are collected first: what is adopted below must differ from them
    # too.
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
    """Let the branch read its own copy of an outer constant."""
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
    """Replace the Reshape of each gate's answer to a scalar by a Squeeze of all its axes."""
    for node in conditionals(model):
        flag = node.inputs[0]
        maker = None if flag is None else flag.producer()
        if maker is None or maker.op_type != "Reshape" or maker.inputs[0] is None:
            continue
        target, source = maker.inputs[1], maker.inputs[0]
        # Only a Reshape to the empty shape, as the linker draws it. Any other stays as it is.
        scalar = target is not None and target.const_value is not None
        if not scalar or target.const_value.size != 0 or source.shape is None:  # type: ignore[union-attr]
            continue
        draft = Draft(maker)
        axes = draft.constant(np.arange(len(source.shape)), np.int64)
        draft.replace(draft.node("Squeeze", [source, axes]))


def _enter(branch: ir.Graph, ending: str, first: str) -> None:
    """Put one Identity per outer tensor at the branch's beginning, and rename the other nodes."""
    # Numbers of equal width: no name begins with another one, as "/1" would begin "/12".
    width = len(str(len(branch)))
    for number, node in enumerate(branch):
        # The old name stays at the end, so that messages still tell the node.
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
    """Return a character that is in none of ``names`` (``inside``), or with which none begins."""
    taken = set("".join(names)) if inside else {name[:1] for name in names}
    more = (chr(code) for code in range(0xA1, 0xFFFF))
    character: str = next(c for c in chain(wishes, more) if c not in taken)
    return character


def _unused(name: str, taken: set[str]) -> str:
    fresh, count = name, 0
    while fresh in taken:
        count += 1
        fresh = f"{name}/{count}"
    return fresh
