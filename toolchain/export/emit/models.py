"""From a split to the kit of a target: link or stage, then the target's passes in their order.

Rules of this file: it orders the passes and names the files; each pass has a file of its own. The
order: what the fixed batch settles; precision, because it reads the names that linking gave; then
dialect, slots through MatMul, and the limits; last the names of boundaries, which any later pass
could break. The same inputs give the same bytes. It measures nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.bundle.linkage import STAGED, SWAP_IF, kit_linkage
from toolchain.core.errors import UsageError
from toolchain.core.words import Precision
from toolchain.device.boards.target import Target
from toolchain.device.engine.kit import KitFlavour, KitModel
from toolchain.export.emit.boundaries import expected_boundaries, name_boundaries
from toolchain.export.emit.dialect import lower
from toolchain.export.emit.fp16 import to_fp16
from toolchain.export.emit.int8 import to_int8
from toolchain.export.emit.limits import refuse_branches, refuse_unsupported
from toolchain.export.emit.matmul import through_matmul
from toolchain.export.emit.owners import is_domain
from toolchain.export.emit.rewrite import conditionals, fix_batch, layer_of, nodes
from toolchain.export.emit.settled import settle
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.link import link
from toolchain.export.graph.stage import stage

# Where precision is a flag, these stay fp32: their sums and squares leave the range of fp16.
_NORMS = {
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "BatchNormalization",
    "Softmax",
    "ReduceMean",
}
Ranges = Mapping[str, float]
_ZERO = np.zeros((), np.float32)


@dataclass(frozen=True, slots=True)
class KitOrder:
    """A kit to make: for which target, in which precision, and with which flavours.

    ``flavours``: of ``swap``, ``staged`` and ``static``. ``recalibrate``: widen the int8 ranges of
    a kit that is there, where this domain needs it.
    """

    target: Target
    precision: Precision
    flavours: tuple[str, ...]
    recalibrate: bool = False

    def require(self) -> None:
        """Refuse what can be known from the order alone.

        Raises PrecisionError for a precision that the board lacks, UsageError for segments without
        the whole network where only a script builds: nothing there could run them.
        """
        self.target.require(self.precision)
        if self.recalibrate and self.precision != "int8":
            raise UsageError(
                f"expected --recalibrate with int8 alone, got it with {self.precision}",
                fix="leave it out, or export int8 in a run of its own",
            )
        shared = {one for one in map(kit_linkage, self.flavours) if not one.folds_domain}
        if self.target.release.scripted and shared == {STAGED}:
            raise UsageError(
                f"{self.target.name}: expected the flavour swap beside staged, got staged without "
                "it: its board builds by a script, and nothing there runs segments",
                fix="add --flavour swap",
            )

    @property
    def title(self) -> str:
        """What progress calls it."""
        return f"{self.target.name} {self.precision}"

    @property
    def in_graph(self) -> Precision:
        """The precision that stands in the models.

        Before strongly typed networks fp16 is a flag of the builder; int8 stands in the graph as
        Q/DQ everywhere.
        """
        flagged = self.precision == "fp16" and not self.target.release.typed
        return "fp32" if flagged else self.precision


@dataclass(frozen=True, slots=True)
class KitModels:
    """The models that an order asks for, and the bytes of their files by name.

    ``ranges``: largest magnitude per activation that int8 was scaled with. ``layers``: where in the
    PyTorch model a node comes from. ``whole``: the ``swap`` model, made in any case; ``emulated``:
    the same graph before dialect and form, with the precision in it even where the kit leaves that
    to the builder's flags. onnxruntime tells the accuracy of it.
    """

    order: KitOrder
    ranges: Ranges
    flavours: tuple[KitFlavour, ...]
    files: Mapping[str, bytes]
    layers: Mapping[str, str]
    whole: bytes
    emulated: bytes


def emit(
    split: Halves, order: KitOrder, *, rates: Mapping[str, float], ranges: Ranges
) -> KitModels:
    """Return the models of every flavour of ``order``.

    ``split`` holds its tensors in memory. ``rates``: calibrated open rate per site, for ``static``;
    ``ranges``: largest magnitude per activation, for int8. Raises PrecisionError,
    ModelRefusedError and LinkError, each naming the node or tensor.
    """
    order.target.require(order.precision)
    passes = _Passes(order, ranges)
    flavours = []
    for flavour in order.flavours:
        linkage = kit_linkage(flavour)
        if linkage.is_segmented:
            models = passes.staged(split)
        else:
            models = (passes.whole(link(split, linkage, rates=rates), flavour),)
        flavours.append(KitFlavour(flavour=flavour, domain=None, release=None, models=models))
    # The accuracy is that of the swap model, so it is made even where the kit will not have it.
    beside = passes
    if SWAP_IF.flavour not in order.flavours:
        beside = _Passes(order, ranges)
        beside.whole(link(split, SWAP_IF), SWAP_IF.flavour)
    return KitModels(
        order=order,
        ranges=ranges,
        flavours=tuple(flavours),
        files=passes.files,
        layers=passes.layers,
        whole=beside.files[_file(SWAP_IF.flavour)],
        emulated=store.to_bytes(_precise(link(split, SWAP_IF), order.precision, ranges)),
    )


def _file(flavour: str) -> str:
    return f"{flavour}.onnx"


class _Passes:
    """Runs a target's passes over models; keeps their bytes by file, and their nodes' layers."""

    def __init__(self, order: KitOrder, ranges: Ranges) -> None:
        self._order, self._ranges = order, ranges
        self.files: dict[str, bytes] = {}
        self.layers: dict[str, str] = {}

    def whole(self, model: ir.Model, flavour: str) -> KitModel:
        """Make one network of everything."""
        return self._written(model, "whole", None, _file(flavour))

    def staged(self, split: Halves) -> tuple[KitModel, ...]:
        """Make a network of each segment, in running order."""
        staged = stage(split)
        models = []
        for item in staged.sites:
            site = item.cut.site
            segments = {"side": item.side, "opened": item.opened, "closed": item.closed}
            for role, segment in segments.items():
                if segment is not None:
                    model = _with_flag(segment, item.cut.gate) if role == "side" else segment
                    models.append(self._written(model, role, site, f"{site}.{role}.onnx"))
        models.append(self._written(staged.tail, "tail", None, "tail.onnx"))
        return tuple(models)

    def _written(self, model: ir.Model, role: str, site: str | None, file: str) -> KitModel:
        """Run the passes and keep the bytes."""
        order, release = self._order, self._order.target.release
        # Segments have a free batch. The kit's models have batch 1, and later passes need known
        # shapes.
        model = settle(fix_batch(model, 1))
        model = _precise(model, order.in_graph, self._ranges)
        model = lower(model, release.kit_opset)
        if not release.conv_slots:
            model = through_matmul(model)
        refuse_branches(model)
        refuse_unsupported(model, release.tensorrt)
        # Last: a pass behind it could rename or add nodes in branches. See boundaries.py.
        model = name_boundaries(model)
        self.files[file] = store.to_bytes(model)
        self.layers |= {
            node.name: layer for node in nodes(model) if node.name and (layer := layer_of(node))
        }
        return KitModel(
            role=role,
            site=site,
            file=file,
            conditionals=len(conditionals(model)),
            boundaries=expected_boundaries(model),
            # Only where a flag decides the precision; else the graph's own types say what stays
            # fp32.
            pinned=_pinned(model) if order.in_graph != order.precision else (),
        )


def _precise(model: ir.Model, precision: Precision, ranges: Ranges) -> ir.Model:
    if precision == "fp16":
        return to_fp16(model)
    return to_int8(model, ranges) if precision == "int8" else model


def _pinned(model: ir.Model) -> tuple[str, ...]:
    """Names of the nodes that stay fp32: the domain's, and norms."""
    wide = (node for node in nodes(model) if is_domain(node) or node.op_type in _NORMS)
    return tuple(dict.fromkeys(node.name for node in wide if node.name))


def _with_flag(model: ir.Model, gate: str) -> ir.Model:
    """Give a gate's state as one byte, ``open.<site>`` bool ``[1, 1]``, beside its logits."""
    values = {value.name: value for value in model.graph.outputs}
    if gate not in values:
        return model
    result = model.clone()
    logits = next(value for value in result.graph.outputs if value.name == gate)
    flag = ir.Value(
        name=f"open.{gate.removeprefix('gate.')}",
        type=ir.TensorType(ir.DataType.BOOL),
        shape=ir.Shape([1, 1]),
    )
    zero = ir.Tensor(_ZERO, name="zero")
    constant = ir.Value(
        name="zero", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]), const_value=zero
    )
    result.graph.register_initializer(constant)
    name = f"{gate.removeprefix('gate.')}/open"
    node = ir.Node("", "GreaterOrEqual", [logits, constant], outputs=[flag], name=name)
    result.graph.append(node)
    result.graph.outputs.append(flag)
    return result
