"""Hand out the nodes of a split in the order in which they run, each once.

Rules of this file: it walks the two halves by their cut points and decides which node belongs to
the glue between blocks, to a site's adaptor and gate, to the block alone, or to the head. Linking
and staging draw from the same parts. It draws nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from toolchain.export.graph.builder import Sketch, input_names, region, value_name
from toolchain.export.graph.cut import Split
from toolchain.export.graph.names import LOGITS, Cut


class Parts:
    """The nodes of both halves; each is handed out once."""

    def __init__(self, halves: Split) -> None:
        self.halves = halves
        self._backbone = list(halves.backbone.graph)
        self._domain = list(halves.domain.graph)
        self._results = [cut.result for cut in halves.cuts]
        self._ends = {value_name(v) for v in halves.backbone.graph.outputs}
        self.sides = {value_name(v) for v in halves.domain.graph.outputs}
        self._given: set[int] = set()

    def glue(self, target: str) -> list[ir.Node]:
        """Backbone nodes that ``target`` needs and that were not handed out yet."""
        return self._new(region(self._backbone, [target], self._results))

    def side(self, cut: Cut) -> list[ir.Node]:
        """The adaptor's and the gate's nodes of one site."""
        targets = [name for name in (cut.correction, cut.gate) if name in self.sides]
        return self._new(region(self._domain, targets, [cut.input, *self._results]))

    def passage(self, cut: Cut) -> list[ir.Node]:
        """An unadapted block with everything up to its result."""
        plain = region(self._domain, [cut.result], [cut.output])
        return self.glue(cut.output) + self._new(plain)

    def gated(self, cut: Cut) -> bool:
        """Whether the site has a gate."""
        return cut.gate in self.sides

    def block(self, cut: Cut) -> tuple[list[ir.Node], list[ir.Node]]:
        """Return (shared, own): what others need too, and what only this block needs."""
        found = region(self._backbone, [cut.output], [cut.input, *self._results])
        found = [node for node in found if id(node) not in self._given]
        own = {id(node) for node in found}
        for node in reversed(found):
            users = {id(use.node) for out in node.outputs for use in out.uses()}
            ends = {value_name(v) for v in node.outputs} & self._ends
            if (users - own) or (ends - {cut.output}):
                own.discard(id(node))
        shared = [node for node in found if id(node) not in own]
        names = {name for node in shared for name in input_names(node)}
        needed = {id(n) for n in region(found, names, [])} | {id(n) for n in shared}
        outside = self._new([node for node in found if id(node) in needed])
        return outside, self._new([node for node in found if id(node) not in needed])

    def head(self) -> list[ir.Node]:
        """The head's nodes."""
        return self._new(region(self._domain, [LOGITS], [self.halves.features]))

    def constant(self, name: str) -> ir.TensorProtocol | None:
        """Return the tensor called ``name`` of either half."""
        for half in (self.halves.backbone, self.halves.domain):
            value = half.graph.initializers.get(name)
            if value is not None:
                return value.const_value
        return None

    def emit(
        self, sketch: Sketch, nodes: Sequence[ir.Node], rename: dict[str, str] | None = None
    ) -> None:
        """Copy nodes into ``sketch`` and bring the constants they read into the same graph."""
        for node in nodes:
            for name in input_names(node):
                tensor = None if sketch.has(name) else self.constant(name)
                if tensor is not None:
                    sketch.initializer(name, tensor)
            sketch.copy(node, rename)

    def _new(self, nodes: list[ir.Node]) -> list[ir.Node]:
        fresh = [node for node in nodes if id(node) not in self._given]
        self._given.update(id(node) for node in fresh)
        return fresh
