"""Lower a model's opset to what an older parser reads.

Rules of this file: the operators' schemas (onnx.defs) say whether an operator's form changed
between two opsets. If it did, the operator needs a row in ``SAME`` (only data types were added) or
a rule in :mod:`toolchain.export.emit.lowering`. Without either it is refused by name; nothing is
passed on in the hope that it means the same. Law: the answers stay the same, bit for bit, or within
1e-6 of the range where a rule takes an operator apart.

Opset and IR version belong together: ONNX 1.8 wrote opset 13 and IR 7, ONNX 1.11 and 1.12 opsets 16
and 17 with IR 8 (ONNX, docs/Versioning.md). TensorRT 8.2 reads opset 13, 8.5 and 8.6 opset 17,
10.0 and later opset 20 and above (onnx-tensorrt, docs/operators.md of those branches).
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from toolchain.core.errors import ModelRefusedError
from toolchain.export.emit import lowering
from toolchain.export.emit.rewrite import copied, finish, graphs, infer, nodes, where

IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8}
OLDEST = 13

# Between opset 13 and 18 these gained data types and nothing else (ONNX, docs/Changelog.md).
_SAME_OPERATORS = (
    "Add Sub Mul Div Relu Identity Where If Loop PRelu LeakyRelu GreaterOrEqual LessOrEqual Pow "
    "CumSum Scan Equal Constant ConstantOfShape Cast Flatten Size Squeeze Unsqueeze Transpose"
)
SAME = frozenset(_SAME_OPERATORS.split())
_ADVICE = "replace it in the backbone by operators of that opset, or choose a newer target"


def lower(model: ir.Model, opset: int) -> ir.Model:
    """Return a copy of ``model`` in ``opset`` (13 to 18) and the IR version that goes with it.

    Branches are lowered too. A model in that opset or below comes back as a copy. Raises
    ModelRefusedError with every operator that has no form there: node, module and what to do.
    """
    if opset not in IR_VERSIONS:
        raise ModelRefusedError(
            f"expected an opset from {OLDEST} to {max(IR_VERSIONS)}, got {opset}",
            fix="name a target of the table: da3 doctor --targets",
        )
    changed = infer(copied(model))
    if changed.graph.opset_imports.get("", 0) <= opset:
        return changed
    # All faults before any error: whoever mends a backbone sees everything at once.
    faults = [fault for node in nodes(changed) if (fault := _lower_node(node, model, opset))]
    if faults:
        raise ModelRefusedError(
            f"opset {opset} has no form for {len(faults)} nodes:\n  " + "\n  ".join(faults),
            fix=_ADVICE,
        )
    for graph in graphs(changed.graph):
        if "" in graph.opset_imports:
            graph.opset_imports[""] = opset
    changed.ir_version = IR_VERSIONS[opset]
    return finish(changed)


def _lower_node(node: ir.Node, model: ir.Model, opset: int) -> str:
    """Lower one node in place; returns its fault, if it has one."""
    if node.domain not in ("", "ai.onnx"):
        return f"{where(node)}: domain {node.domain!r} belongs to no ONNX opset"
    source = model.graph.opset_imports[""]
    if _since(node.op_type, source) == _since(node.op_type, opset) or node.op_type in SAME:
        return ""
    rule = lowering.RULES.get(node.op_type)
    if rule is None:
        return f"{where(node)}: its form changed after opset {opset}"
    # Before the rule: it may take the node out of the graph.
    place = where(node)
    reason = rule(node)
    return f"{place}: {reason}" if reason else ""


def _since(operator: str, opset: int) -> int | None:
    """The opset in which the form of ``operator`` that ``opset`` uses appeared, None if none."""
    try:
        schema = onnx.defs.get_schema(operator, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return None
    version: int = schema.since_version
    return version
