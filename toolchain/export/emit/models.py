"""From a split to the kit of a target: link or stage, then the target's passes in their order.

Rules of this file: it orders the passes and names the files; what a pass does stands in its own
file. The order: precision (it reads the names that linking gave), dialect, slots through MatMul,
the limits, and last the names of boundaries, which any later pass could break. Same inputs, same
bytes. It measures nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.bundle.linkage import SWAP_IF, kit_linkage
from toolchain.core.errors import PrecisionError
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
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.link import link
from toolchain.export.graph.names import SLOTS_FILE, WEIGHTS_FILE
from toolchain.export.graph.split import Split, read_split
from toolchain.export.graph.stage import stage

# Computed in fp32 where precision is a flag: their sums and squares leave the range of fp16.
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
class Wish:
    """What to make for a split.

    ``flavours``: of ``swap``, ``staged`` and ``static``. ``rates``: calibrated open rate per site,
    for ``static``. ``ranges``: largest magnitude per activation, for int8.
    """

    target: Target
    precision: Precision
    flavours: tuple[str, ...]
    rates: Mapping[str, float]
    ranges: Ranges

    def require(self) -> None:
        """Raise PrecisionError if the board's GPU does not compute in the precision."""
        board = self.target.board
        if self.precision not in board.precisions:
            raise PrecisionError(
                f"{self.target.name}: expected one of {', '.join(board.precisions)}, which "
                f"{board.title} computes in, got {self.precision}",
                fix=f"--precision {board.precisions[-1]}",
            )

    @property
    def opset(self) -> int:
        """The opset of the models: the linker's, or the highest that the target reads in full."""
        return self.target.release.kit_opset

    @property
    def in_graph(self) -> Precision:
        """The precision that stands in the models.

        Before strongly typed networks fp16 is a flag of the builder; int8 stands in the graph as
        Q/DQ everywhere.
        """
        flagged = self.precision == "fp16" and not self.target.release.typed
        return "fp32" if flagged else self.precision


@dataclass(frozen=True, slots=True)
class Emitted:
    """The flavours of a kit, as they were wished for, and the bytes of their files by name.

    ``layers``: where in the PyTorch model a node comes from. ``whole``: the ``swap`` model, made in
    any case; ``emulated``: the same graph before dialect and form, with the precision in it even
    where the kit leaves that to the builder's flags: what onnxruntime tells the accuracy of.
    """

    wish: Wish
    flavours: tuple[KitFlavour, ...]
    files: Mapping[str, bytes]
    layers: Mapping[str, str]
    whole: bytes
    emulated: bytes


def in_memory(halves: Halves) -> Split:
    """Return the split with its tensors instead of references into files."""
    backbone = store.from_bytes(halves.backbone_graph, what="backbone.onnx")
    domain = store.from_bytes(halves.domain_graph, what="domain.onnx")
    store.load_tensors(backbone, WEIGHTS_FILE, halves.weights)
    store.load_tensors(domain, SLOTS_FILE, halves.slots)
    return read_split(backbone, domain)


def emit(split: Split, wish: Wish) -> Emitted:
    """Return the models of every flavour that was wished for.

    ``split`` holds its tensors in memory. Raises PrecisionError, ModelRefusedError and LinkError,
    each naming the node or tensor.
    """
    wish.require()
    made = _Made(wish)
    flavours = []
    for flavour in wish.flavours:
        segmented = kit_linkage(flavour).is_segmented
        models = made.staged(split) if segmented else (made.whole(split, flavour),)
        flavours.append(KitFlavour(flavour, None, None, models))
    emulated = store.to_bytes(_precise(link(split, SWAP_IF), wish, wish.precision))
    beside = _Made(wish)
    if SWAP_IF.flavour not in wish.flavours:
        beside.whole(split, SWAP_IF.flavour)
    whole = (made.files | beside.files)[_file(SWAP_IF.flavour)]
    return Emitted(wish, tuple(flavours), made.files, made.layers, whole, emulated)


def _file(flavour: str) -> str:
    return f"{flavour}.onnx"


class _Made:
    """Models as they are made: their bytes by file, and which layer a node comes from."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.files: dict[str, bytes] = {}
        self.layers: dict[str, str] = {}

    def whole(self, split: Split, flavour: str) -> KitModel:
        """Make one network of everything."""
        model = link(split, kit_linkage(flavour), rates=self.wish.rates)
        return self._written(model, "whole", None, _file(flavour))

    def staged(self, split: Split) -> tuple[KitModel, ...]:
        """Make a network of each segment, in running order."""
        staged = stage(split)
        found = []
        for item in staged.stages:
            site = item.cut.site
            segments = {"side": item.side, "opened": item.opened, "closed": item.closed}
            for role, model in segments.items():
                if model is not None:
                    shown = _with_flag(model, item.cut.gate) if role == "side" else model
                    found.append(self._written(shown, role, site, f"{site}.{role}.onnx"))
        found.append(self._written(staged.tail, "tail", None, "tail.onnx"))
        return tuple(found)

    def _written(self, model: ir.Model, role: str, site: str | None, file: str) -> KitModel:
        """Run the target's passes and keep the bytes."""
        wish = self.wish
        model = _precise(fix_batch(model, 1), wish, wish.in_graph)
        model = lower(model, wish.opset)
        if not wish.target.release.conv_slots:
            model = through_matmul(model)
        refuse_branches(model)
        refuse_unsupported(model, wish.target.release.tensorrt)
        model = name_boundaries(model)
        self.files[file] = store.to_bytes(model)
        self.layers |= {
            node.name: layer for node in nodes(model) if node.name and (layer := layer_of(node))
        }
        pinned = _pinned(model) if wish.in_graph != wish.precision else ()
        branching = len(conditionals(model))
        return KitModel(role, site, file, branching, expected_boundaries(model), pinned)


def _precise(model: ir.Model, wish: Wish, precision: Precision) -> ir.Model:
    if precision == "fp16":
        return to_fp16(model)
    return to_int8(model, wish.ranges) if precision == "int8" else model


def _pinned(model: ir.Model) -> tuple[str, ...]:
    """Names of the nodes that stay fp32: the domain's, and norms."""
    found = (node for node in nodes(model) if is_domain(node) or node.op_type in _NORMS)
    return tuple(dict.fromkeys(node.name for node in found if node.name))


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
