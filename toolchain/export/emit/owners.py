"""Which nodes are the domain's, and copies of a model in which every value has a type.

Rules of this file: it holds what the passes for precision share. It reads the names that
:mod:`toolchain.export.graph.cut` and :mod:`toolchain.export.graph.link` give, so it takes linked
graphs and segments of ``staged``. It changes no value of any tensor.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from toolchain.core.errors import PrecisionError
from toolchain.export.emit.rewrite import copied, graphs, infer

# The names that linking gives to the domain's values. A name that a later pass derives from one of
# them begins with it.
_DOMAIN = re.compile(
    r"(w\d+|adaptor\..+?|gate\..+?|logits|gates)(/.*)?"
    r"|[^/]+/(open|flag|mask|nonzero|rows|index|count|some)"
)


def is_domain(node: ir.Node) -> bool:
    """Whether ``node`` of a linked graph or a segment is the domain's: adaptor, gate or head.

    The join of a block and its correction is the backbone's: it works on whole maps.
    """
    return any(_DOMAIN.fullmatch(value.name or "") for value in node.outputs)


def walk(model: ir.Model) -> list[tuple[ir.Graph, ir.Node]]:
    """Return every node, those in branches included, with the graph that it lies in."""
    return [(graph, node) for graph in graphs(model.graph) for node in graph]


def loaded(model: ir.Model) -> ir.Model:
    """Return a copy whose every value has a type, tensors shared with ``model``.

    Raises PrecisionError naming a tensor that is only referred to, and as :func:`stated`.
    """
    for graph in graphs(model.graph):
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                raise PrecisionError(
                    f"tensor {name!r}: expected its values in memory, got a reference",
                    fix="load the halves' tensors (graph.store.load_tensors) before linking",
                )
    return stated(copied(model))


def stated(model: ir.Model) -> ir.Model:
    """Infer the type and shape of every value anew, in place, and return the model.

    Outputs of graphs and branches keep their stated type; inference must agree with it. Raises
    ModelRefusedError where types contradict each other, PrecisionError naming a value without one.
    """
    results = {id(value) for graph in graphs(model.graph) for value in graph.outputs}
    outputs = [(node, value) for _, node in walk(model) for value in node.outputs if value.name]
    for _, value in outputs:
        if id(value) not in results:
            # Inference refuses a value whose stated type is not the one it infers. A pass that
            # changed a type upstream has left such statements behind.
            value.type, value.shape = None, None
    infer(model)
    for node, value in outputs:
        if value.dtype is None:
            raise PrecisionError(
                f"value {value.name!r}: expected an operator whose type ONNX infers, got "
                f"{node.domain or 'ai.onnx'}.{node.op_type}",
                fix="leave that block out of blocks, or stay in fp32",
            )
    return model
