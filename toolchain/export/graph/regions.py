"""Regions of the halves: which nodes belong together, handed out in the order in which they run.

Rules of this file: it walks the two halves by their cut points. It decides whether a node belongs
to the glue between blocks, to a site's adaptor and gate, to the block alone, or to the head. It
hands each node out once. Linking and staging draw from the same regions. It draws no control flow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from toolchain.export.graph.builder import GraphBuilder, input_names, region, value_name
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.names import LOGITS, Cut


class Regions:
    """The nodes of both halves; each is handed out once."""

    def __init__(self, halves: Halves) -> None:
        self.halves = halves
        self._backbone = list(halves.backbone.graph)
        self._domain = list(halves.domain.graph)
        self._results = [cut.result for cut in halves.cuts]
        self._backbone_outputs = {value_name(v) for v in halves.backbone.graph.outputs}
        self._domain_outputs = {value_name(v) for v in halves.domain.graph.outputs}
        self._handed_out: set[int] = set()

    def glue(self, target: str) -> list[ir.Node]:
        """Backbone nodes that ``target`` needs and that were not handed out yet."""
        # The walk also meets nodes that were handed out with earlier blocks; ``_new`` drops those.
        return self._new(region(self._backbone, [target], self._results))

    def side(self, cut: Cut) -> list[ir.Node]:
        """The adaptor's and the gate's nodes of one site."""
        targets = [name for name in (cut.correction, cut.gate) if name in self._domain_outputs]
        return self._new(region(self._domain, targets, [cut.input, *self._results]))

    def passage(self, cut: Cut) -> list[ir.Node]:
        """An unadapted block with everything up to its result."""
        identity = region(self._domain, [cut.result], [cut.output])
        return self.glue(cut.output) + self._new(identity)

    def is_adapted(self, cut: Cut) -> bool:
        """Whether the site has an adaptor."""
        return cut.correction in self._domain_outputs

    def is_gated(self, cut: Cut) -> bool:
        """Whether the site has a gate."""
        return cut.gate in self._domain_outputs

    def block(self, cut: Cut) -> tuple[list[ir.Node], list[ir.Node]]:
        """Return (shared, own): what others need too, and what only this block needs.

        A closed gate skips ``own`` alone. A value that is read elsewhere as well, such as a mask or
        a position embedding that is computed inside the first block, must be there in both states.
        """
        nodes = region(self._backbone, [cut.output], [cut.input, *self._results])
        nodes = [node for node in nodes if id(node) not in self._handed_out]
        # From the last node to the first: a node is the block's own if all of its readers are, and
        # if nothing outside can see its outputs but the block's output itself.
        own = {id(node) for node in nodes}
        for node in reversed(nodes):
            readers = {id(use.node) for out in node.outputs for use in out.uses()}
            visible_outside = {value_name(v) for v in node.outputs} & self._backbone_outputs
            if (readers - own) or (visible_outside - {cut.output}):
                own.discard(id(node))
        shared = [node for node in nodes if id(node) not in own]
        # A shared node runs before the branch, so all that it needs must run before it, too.
        names = {name for node in shared for name in input_names(node)}
        needed = {id(n) for n in region(nodes, names, [])} | {id(n) for n in shared}
        before_branch = self._new([node for node in nodes if id(node) in needed])
        return before_branch, self._new([node for node in nodes if id(node) not in needed])

    def sizes(self, names: Sequence[str]) -> list[ir.Node] | None:
        """Return the backbone's nodes that make ``names`` of shapes alone; None if one needs more.

        A block that reads the batch size (to expand a token, or to make a mask) reads such values,
        and blocks share them. They are not handed out: whoever has other rows computes them anew.
        """
        needed = {name for name in names if self.constant(name) is None}
        nodes: list[ir.Node] = []
        for node in reversed(self._backbone):
            if not needed:
                break
            made = {value_name(v) for v in node.outputs}
            if made & needed:
                nodes.append(node)
                needed -= made
                if node.op_type != "Shape":
                    needed |= {n for n in input_names(node) if self.constant(n) is None}
        return None if needed else nodes[::-1]

    def head(self) -> list[ir.Node]:
        """The head's nodes."""
        return self._new(region(self._domain, [LOGITS], [self.halves.features]))

    def constant(self, name: str) -> ir.TensorProtocol | None:
        """Return the tensor called ``name`` of either half, None if there is none."""
        for half in (self.halves.backbone, self.halves.domain):
            value = half.graph.initializers.get(name)
            if value is not None:
                return value.const_value
        return None

    def copy(
        self,
        builder: GraphBuilder,
        nodes: Sequence[ir.Node],
        rename: Mapping[str, str] | None = None,
    ) -> None:
        """Copy nodes into ``builder`` and bring the constants that they read into the same graph.

        A constant that the graph around a branch has already is not brought twice.
        """
        for node in nodes:
            for name in input_names(node):
                tensor = None if builder.has(name) else self.constant(name)
                if tensor is not None:
                    builder.initializer(name, tensor)
            builder.copy(node, rename)

    def _new(self, nodes: list[ir.Node]) -> list[ir.Node]:
        new = [node for node in nodes if id(node) not in self._handed_out]
        self._handed_out.update(id(node) for node in new)
        return new
