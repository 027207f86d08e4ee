"""What ``da3 inspect`` shows of kits and engines, and of plans in a bundle.

Rules of this file: as :mod:`toolchain.cli.show.files`.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolchain.bundle import PrecisionCost
from toolchain.cli.show import layout
from toolchain.inspect.engine_facts import EngineFacts, KitFacts


def kit(facts: KitFacts) -> list[str]:
    """Return the lines for a kit."""
    m = facts.manifest
    rows = [
        (
            item.flavour,
            str(len(item.models)),
            str(sum(model.conditionals for model in item.models)),
            str(sum(model.boundaries for model in item.models)),
            item.domain or "",
        )
        for item in m.flavours
    ]
    return [
        *layout.pairs(
            {
                "target": f"{m.target}, {m.precision}",
                "kit": facts.digest,
                "size": layout.size(facts.size_bytes),
                "backbone": f"{facts.backbone.name}  {facts.backbone.weights_digest}",
                "ONNX": f"opset {m.opset}",
                "slots": str(len(m.slots)),
                "gates": f"{len(m.gates)}: {layout.some(m.gates)}" if m.gates else "none",
                "classes": f"{m.classes.low} to {m.classes.high}, best {m.classes.best}",
                "made by": layout.listed(m.made_by),
            }
        ),
        "",
        *layout.table(
            ("flavour", "models", "conditionals", "boundaries", "domain"), rows, right="123"
        ),
    ]


def engine(facts: EngineFacts) -> list[str]:
    """Return the lines for an engine: every part of its key, and what was measured on it."""
    m = facts.manifest
    key = {name: "none" if value is None else str(value) for name, value in m.built_for.parts()}
    return [
        *layout.pairs(
            {
                "backbone": m.name,
                "target": facts.kit.target,
                "size": layout.size(facts.size_bytes),
                "plans": str(len(m.plans)),
                "gates": m.gates,
                "measured": layout.listed(m.figures) or "nothing yet",
                "made by": layout.listed(m.made_by),
            }
        ),
        "",
        layout.title("built for"),
        *layout.pairs(key),
    ]


def plans(entries: Sequence[PrecisionCost]) -> list[str]:
    """Return the lines for what each precision costs a domain; none without plans."""
    if not entries:
        return []
    rows = [
        (
            plan.target,
            plan.precision,
            layout.percent(plan.accuracy),
            layout.percent(plan.agreement),
            layout.percent(plan.gate_agreement),
            str(plan.samples),
        )
        for plan in entries
    ]
    heads = ("target", "precision", "accuracy", "same class", "same gates", "samples")
    return [*layout.table(heads, rows, right="2345"), ""]
