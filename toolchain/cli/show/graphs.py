"""What ``da3 inspect`` shows of graphs, plain tensors and half-done trainings.

Rules of this file: as :mod:`toolchain.cli.show.files`.
"""

from __future__ import annotations

from collections.abc import Mapping

from toolchain.bundle.linkage import linkage_of
from toolchain.cli.show import layout
from toolchain.inspect import GraphFacts, TensorsFacts, TrainingFacts

_SHOWN_TEXT = 160


def training(facts: TrainingFacts) -> list[str]:
    """Return the lines for a half-done training."""
    return layout.pairs(
        {
            "steps done": facts.step,
            "head alone": layout.percent(facts.head_accuracy),
            "size": layout.size(facts.size_bytes),
            **{name: _brief(value) for name, value in facts.identity.items()},
        }
    )


def _brief(value: object) -> str:
    text = layout.listed(value) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}..."


def tensors(facts: TensorsFacts) -> list[str]:
    """Return the lines for any other safetensors file."""
    rows = [(t.name, t.dtype, layout.shape(t.shape)) for t in facts.tensors]
    return [
        *layout.pairs(
            {
                "size": layout.size(facts.size_bytes),
                "tensors": f"{len(facts.tensors)}, {facts.elements} elements",
                **{f"noted: {key}": _brief(value) for key, value in facts.metadata.items()},
            }
        ),
        "",
        *layout.table(("tensor", "dtype", "shape"), layout.shortened(rows)),
    ]


def graph(facts: GraphFacts) -> list[str]:
    """Return the lines for an ONNX model. Slots among its inputs are counted and not listed."""
    linkage = linkage_of(facts.role)
    takes_slots = linkage is not None and not linkage.folds_domain
    # Only slots have dots in their names (block03.gate.bias).
    inputs = [port for port in facts.inputs if not (takes_slots and "." in port.name)]
    slots = len(facts.inputs) - len(inputs)
    rows = [
        (word, port.name, port.dtype, layout.shape(port.shape))
        for word, ports in (("input", inputs), ("output", facts.outputs))
        for port in ports
    ]
    properties = {
        "size": layout.size(facts.size_bytes),
        "written by": facts.producer or "not stated",
        "dialect": f"IR version {facts.ir_version}, {layout.listed(facts.opsets)}",
        "slots": f"{slots} inputs, given at run time",
        "nodes": f"{facts.nodes}, and {facts.branch_nodes} in {facts.branches} branches",
        "tensors": f"{facts.inline_tensors} inside ({layout.size(facts.inline_bytes)})",
        **{
            f"  {file.location}": f"{file.tensors} ({layout.size(file.size_bytes)})"
            for file in facts.external
        },
    }
    if not slots:
        del properties["slots"]
    names = sorted({*facts.operators, *facts.branch_operators})
    operators = [
        (name, facts.operators.get(name, 0), facts.branch_operators.get(name, 0)) for name in names
    ]
    return [
        *layout.pairs(properties),
        "",
        *layout.table(("", "name", "dtype", "shape"), layout.shortened(rows)),
        "",
        *layout.table(("operator", "main", "in branches"), layout.shortened(operators), right="12"),
    ]
