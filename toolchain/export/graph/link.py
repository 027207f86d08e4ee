"""Link a domain into the backbone: resolve slots, and turn dense gates into real skipping.

Rules of this file: requires halves, ensures one ONNX model of standard operators with the outputs
``logits`` and, where there are gates, ``gates`` (logits ``[N, G]`` in block order). It changes no
value of any tensor. It runs nothing and writes nothing.

:mod:`toolchain.bundle.linkage` lists what a linked graph can be. Two forms have one semantics (see
:mod:`toolchain.training.adapt.adaptors`):

* ``if``: batch 1. Each gate is an ``If``. The block's weights lie *inside* the branch, where the
  runtime may lay them out for speed. The adaptor's addition lies in both branches, so that a closed
  gate costs one pass over the map and no copy.
* ``rows``: any batch. The rows whose gate is open are gathered, computed and scattered back; a
  sample's answer never depends on its neighbours. An ``If`` keeps the block from running on no rows
  at all, which several of a runtime's kernels and fusions refuse.

Slots are pure run-time inputs (``swap``: the runtime itself refuses a missing or misshapen one) or
constants (``static``: gates whose calibrated rate is 0 or 1 are resolved).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from toolchain.bundle.linkage import Linkage
from toolchain.core.errors import LinkError
from toolchain.export.graph.builder import GraphBuilder, input_names, value_name
from toolchain.export.graph.halves import META_ROLE, Halves
from toolchain.export.graph.join import add_correction
from toolchain.export.graph.names import (
    BATCH,
    CLASSES,
    GATES,
    HEAD_SLOTS,
    IMAGE,
    LOGITS,
    Cut,
)
from toolchain.export.graph.regions import Regions

NO_RATES: Mapping[str, float] = MappingProxyType({})


def link(
    halves: Halves,
    linkage: Linkage,
    *,
    rates: Mapping[str, float] = NO_RATES,
    taps: bool = False,
) -> ir.Model:
    """Return the linked model.

    ``rates``: calibrated open rate per site (0 to 1); a graph that folds the domain resolves gates
    by them. ``taps``: give every ``out.s`` too, for finding the first tensor that diverges.

    Raises LinkError naming the block that cannot be linked.
    """
    if linkage.is_segmented:
        raise LinkError(
            f"{linkage.stem} is a chain of segments and not one graph",
            fix="use toolchain.export.graph.stage.stage",
        )
    return _Linker(halves, linkage, rates, taps=taps).model()


class _Linker:
    def __init__(
        self, halves: Halves, linkage: Linkage, rates: Mapping[str, float], *, taps: bool
    ) -> None:
        self.halves = halves
        self.linkage = linkage
        self.rates = rates
        self.taps = taps
        self.batch: int | str = 1 if linkage.takes_one_picture else BATCH
        self.regions = Regions(halves)
        # Values whose first dimension is the batch, by the way they were cut.
        self.per_picture = {IMAGE} | {n for c in halves.cuts for n in (c.input, c.output, c.result)}
        self.builder = GraphBuilder(linkage.stem, opset=halves.backbone.graph.opset_imports[""])
        self.gates: list[str] = []

    def model(self) -> ir.Model:
        """Draw the whole graph in running order."""
        regions, builder = self.regions, self.builder
        self._inputs()
        for cut in self.halves.cuts:
            regions.copy(builder, regions.glue(cut.input))
            if regions.is_adapted(cut):
                self._site(cut)
            else:
                regions.copy(builder, regions.passage(cut))
        regions.copy(builder, regions.glue(self.halves.features))
        regions.copy(builder, regions.head())
        return self._finish()

    def _inputs(self) -> None:
        image = next(v for v in self.halves.backbone.graph.inputs if v.name == IMAGE)
        assert image.shape is not None
        assert image.dtype is not None
        sides = [d if isinstance(d, int) else BATCH for d in list(image.shape)[1:]]
        self.builder.input(IMAGE, image.dtype, [self.batch, *sides])
        for slot in self.halves.slots:
            tensor = self.regions.constant(slot)
            assert tensor is not None
            if self.linkage.folds_domain:
                self.builder.initializer(slot, tensor)
            else:
                # An input without an initializer: TensorRT would take one with a default value for
                # a constant, and onnxruntime would run on that default if a slot were forgotten.
                self.builder.input(slot, tensor.dtype, self._slot_shape(slot, tensor))

    def _slot_shape(self, slot: str, tensor: ir.TensorProtocol) -> list[int | str]:
        """Return a slot's shape with an open class count: domains of any count share one graph."""
        shape: list[int | str] = list(tensor.shape.numpy())
        return [CLASSES, *shape[1:]] if slot in HEAD_SLOTS else shape

    def _finish(self) -> ir.Model:
        builder, floats = self.builder, ir.DataType.FLOAT
        outputs = [builder.typed(LOGITS, floats, [self.batch, self._classes()])]
        if self.gates:
            builder.node("Concat", self.gates, GATES, {"axis": 1})
            outputs.append(builder.typed(GATES, floats, [self.batch, len(self.gates)]))
        if self.taps:
            outputs += [
                builder.typed(cut.result, floats, [self.batch, *cut.out_shape])
                for cut in self.halves.adapted
            ]
        return builder.model(
            outputs,
            ir_version=self.halves.backbone.ir_version,
            metadata={META_ROLE: self.linkage.stem},
        )

    def _classes(self) -> int | str:
        if not self.linkage.folds_domain:
            return CLASSES
        logits = next(v for v in self.halves.domain.graph.outputs if v.name == LOGITS)
        assert logits.shape is not None
        last = logits.shape[-1]
        return last if isinstance(last, int) else CLASSES

    def _site(self, cut: Cut) -> None:
        regions, builder = self.regions, self.builder
        # The gate must be known before the block: adaptor and gate come first.
        regions.copy(builder, regions.side(cut))
        shared, block = regions.block(cut)
        regions.copy(builder, shared)
        if regions.is_gated(cut):
            self.gates.append(cut.gate)
        state = self._resolved(cut)
        if state is True:
            regions.copy(builder, block)
            add_correction(builder, self.halves, cut, cut.output, cut.result)
        elif state is False:
            add_correction(builder, self.halves, cut, cut.input, cut.result)
        elif self.linkage.form == "if":
            self._conditional(cut, block)
        else:
            self._rows(cut, block)

    def _resolved(self, cut: Cut) -> bool | None:
        """True or False where the block's state is fixed, None where its gate decides."""
        if not self.regions.is_gated(cut):
            return True
        if cut.input == cut.output:  # the block does nothing: both states are one
            return False
        # Another domain may open what this one keeps closed: only a folded domain fixes a gate.
        if not self.linkage.folds_domain:
            return None
        # Only a gate that stayed in one state over all calibration pictures is resolved. Without a
        # rate it decides at run time.
        return {0.0: False, 1.0: True}.get(self.rates.get(cut.site, 0.5))

    def _open(self, cut: Cut) -> str:
        zero = self.builder.constant("zero", 0.0, np.float32)
        return self.builder.node("GreaterOrEqual", [cut.gate, zero], f"{cut.site}/open")

    def _conditional(self, cut: Cut, block: list[ir.Node]) -> None:
        """Draw the form ``if``: the condition is one scalar, so the batch is 1."""
        scalar = self.builder.constant("scalar_shape", [], np.int64)
        flag = self.builder.node("Reshape", [self._open(cut), scalar], f"{cut.site}/flag")
        branches = {
            "then_branch": self._branch(cut, f"{cut.site}/then", block, cut.output),
            "else_branch": self._branch(cut, f"{cut.site}/else", [], cut.input),
        }
        self.builder.node("If", [flag], cut.result, branches)

    def _branch(self, cut: Cut, name: str, block: list[ir.Node], source: str) -> ir.Graph:
        branch = GraphBuilder(name, opset=self.builder.opset, outer=self.builder)
        self.regions.copy(branch, block)
        return self._joined(branch, cut, source)

    def _joined(self, branch: GraphBuilder, cut: Cut, source: str) -> ir.Graph:
        # The addition makes a new tensor, so no branch returns a value of the graph around as it
        # is: a runtime would have to copy that, or refuse it.
        result = add_correction(branch, self.halves, cut, source, f"{branch.name}/{cut.result}")
        branch.typed(result, ir.DataType.FLOAT, [self.batch, *cut.out_shape])
        return branch.graph([result])

    def _rows(self, cut: Cut, block: list[ir.Node]) -> None:
        """Draw the form ``rows``: gather the rows whose gate is open, compute, scatter back."""
        block = self._sizes(cut, block) + block
        site, builder = cut.site, self.builder
        flat = builder.constant("flat_shape", [-1], np.int64)
        mask = builder.node("Reshape", [self._open(cut), flat], f"{site}/mask")
        # NonZero gives [1, K]; ScatterND takes its indices as [K, 1] and Gather as [K].
        nonzero = builder.node("NonZero", [mask], f"{site}/nonzero")
        rows = builder.node("Transpose", [nonzero], f"{site}/rows")
        index = builder.node("Reshape", [rows, flat], f"{site}/index")
        count = builder.node("Size", [index], f"{site}/count")
        none = builder.constant("none", 0, np.int64)
        some = builder.node("Greater", [count, none], f"{site}/some")
        branches = {
            "then_branch": self._rows_branch(cut, block, rows, index),
            "else_branch": self._branch(cut, f"{site}/else", [], cut.input),
        }
        builder.node("If", [some], cut.result, branches)

    def _rows_branch(self, cut: Cut, block: list[ir.Node], rows: str, index: str) -> ir.Graph:
        branch = GraphBuilder(f"{cut.site}/then", opset=self.builder.opset, outer=self.builder)
        gathered = branch.node("Gather", [cut.input, index], f"{cut.site}/given", {"axis": 0})
        self._copy_for_rows(branch, cut, block, gathered)
        # Rows that stay closed keep the block's input, as a closed gate says.
        merged = branch.node("ScatterND", [cut.input, rows, cut.output], f"{cut.site}/merged")
        return self._joined(branch, cut, merged)

    def _copy_for_rows(
        self, branch: GraphBuilder, cut: Cut, block: list[ir.Node], gathered: str
    ) -> None:
        """Copy a block's nodes so that they see ``gathered`` alone, the batch size included."""
        rename = {cut.input: gathered}
        inside = {value_name(v) for node in block for v in node.outputs} | {cut.input}
        for node in block:
            (first, *_) = node.outputs
            source = next(iter(input_names(node)), "")
            if node.op_type == "Shape" and source not in inside:
                rename[value_name(first)] = f"{cut.site}/{value_name(first)}"
                _shape_of_rows(branch, node, source, gathered, rename[value_name(first)])
                continue
            # What is computed anew stands in the graph around under its own name.
            again = [name for v in node.outputs if branch.has(name := value_name(v))]
            rename |= {name: f"{cut.site}/{name}" for name in again}
            self.regions.copy(branch, [node], rename)

    def _sizes(self, cut: Cut, block: list[ir.Node]) -> list[ir.Node]:
        """Return the nodes outside a block that tell it of the batch's shape.

        Raises LinkError for a block that reads other per-sample values: nobody gathers the rows of
        those.
        """
        made = {value_name(v) for node in block for v in node.outputs} | {cut.input}
        read = [
            name
            for node in block
            for name in input_names(node)
            if name not in made and not self._is_batch_shape(node, name)
        ]
        sizes = self._of_batch(read)
        if sizes is not None:
            return sizes
        stranger = next(name for name in read if self._of_batch([name]) is None)
        raise LinkError(
            f"block {cut.module!r} reads {stranger!r} besides its input, so its rows cannot be "
            "gathered alone",
            fix="leave it out of blocks, or compute that value inside the block",
        )

    def _of_batch(self, names: list[str]) -> list[ir.Node] | None:
        """Return what makes ``names`` of the batch's shape alone; None if one needs more."""
        sizes = self.regions.sizes(names)
        shapes = [node for node in sizes or () if node.op_type == "Shape"]
        known = all(self._is_batch_shape(node, input_names(node)[0]) for node in shapes)
        return sizes if known else None

    def _is_batch_shape(self, node: ir.Node, source: str) -> bool:
        """Tell whether a node asks for the shape of what has a row for each picture."""
        return node.op_type == "Shape" and source in self.per_picture


def _shape_of_rows(
    branch: GraphBuilder, node: ir.Node, source: str, gathered: str, name: str
) -> None:
    """Draw the shape of ``source`` with as many rows as ``gathered`` has."""
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", 1 << 30)
    if start == 0 and end == 1:
        branch.node("Shape", [gathered], name, {"start": 0, "end": 1})
    elif start > 0:
        branch.node("Shape", [source], name, {"start": start, "end": end})
    else:
        count = branch.node("Shape", [gathered], f"{name}/rows", {"start": 0, "end": 1})
        rest = branch.node("Shape", [source], f"{name}/rest", {"start": 1, "end": end})
        branch.node("Concat", [count, rest], name, {"axis": 0})
