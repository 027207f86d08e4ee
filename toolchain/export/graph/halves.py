"""The two halves of a model: the frozen backbone and the domain, as ONNX models.

Rules of this file: no torch and no onnxruntime, so that halves which were written once can be read
back and linked on any machine. It does not cut (``cut``) and does not link (``link``).

Both halves are plain ONNX models:

* The backbone reads ``image`` and every site's ``out.s``. It gives every ``in.s``, every
  ``block.s`` and the features. It is cut at *all* blocks, adapted or not, so one file serves every
  method and every option.
* The domain reads what the backbone gives. It holds the adaptors, the gates, the dense join
  (``Where``, ``Add``) and the head. It gives every ``out.s`` and the logits. For a block without an
  adaptor ``out.s`` is an ``Identity``.

Law: :func:`recompose` of the halves answers as the captured graph does, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import onnx_ir as ir

from toolchain.core.errors import SplitError
from toolchain.export.graph.builder import GraphBuilder, input_names, value_name
from toolchain.export.graph.names import BATCH, IMAGE, Cut

META_CUTS, META_FEATURES, META_ROLE = "da3.cuts", "da3.features", "da3.role"


@dataclass(frozen=True, slots=True)
class Halves:
    """Backbone and domain of one captured model.

    ``features`` is the name of the head's input: usually ``features``, else the value it equals.
    ``slots``: names of the domain's tensors, sorted.
    """

    backbone: ir.Model
    domain: ir.Model
    cuts: tuple[Cut, ...]
    features: str
    slots: tuple[str, ...]

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates' logits, in the order of their blocks."""
        outputs = {value_name(v) for v in self.domain.graph.outputs}
        return tuple(cut.gate for cut in self.cuts if cut.gate in outputs)

    @property
    def adapted(self) -> tuple[Cut, ...]:
        """The sites that have an adaptor."""
        outputs = {value_name(v) for v in self.domain.graph.outputs}
        return tuple(cut for cut in self.cuts if cut.correction in outputs)


def read_halves(backbone: ir.Model, domain: ir.Model) -> Halves:
    """Join two halves that were read from files. Raises SplitError when they do not fit."""
    cuts, features = _cut_points(backbone)
    domain_cuts, domain_features = _cut_points(domain)
    if cuts != domain_cuts or features != domain_features:
        raise SplitError(
            "backbone.onnx and domain.onnx were cut at different places",
            fix="export the domain again with this backbone",
        )
    # Only slots have a dot in their names; cutting numbered the domain's other constants.
    slots = tuple(sorted(n for n in domain.graph.initializers if "." in n))
    return Halves(backbone, domain, cuts, features, slots)


def cut_metadata(cuts: Sequence[Cut], features: str) -> dict[str, str]:
    """Return the metadata by which each half tells where it was cut."""
    rows = [asdict(cut) for cut in cuts]
    # Sorted keys: equal cuts must give equal bytes.
    return {META_CUTS: json.dumps(rows, sort_keys=True), META_FEATURES: features}


def _cut_points(model: ir.Model) -> tuple[tuple[Cut, ...], str]:
    """Read back what :func:`cut_metadata` wrote."""
    try:
        rows = json.loads(model.metadata_props[META_CUTS])
        cuts = tuple(
            Cut(**{**row, "in_shape": tuple(row["in_shape"]), "out_shape": tuple(row["out_shape"])})
            for row in rows
        )
        return cuts, model.metadata_props[META_FEATURES]
    except (KeyError, TypeError, ValueError, RecursionError) as err:
        raise SplitError(
            f"model {model.graph.name!r} carries no cut points: {err}",
            fix="use files that da3-export wrote",
        ) from err


def recompose(halves: Halves, *, fed: Collection[str] = ()) -> ir.Model:
    """Put the halves together again without any optimisation: the proof of the split.

    Returns a model with the outputs of both halves, and with the tensors called ``fed`` as run-time
    inputs. Raises SplitError for a node that reads what neither half computes.
    """
    opset = halves.backbone.graph.opset_imports[""]
    builder = GraphBuilder("recomposed", opset=opset)
    image = next(v for v in halves.backbone.graph.inputs if v.name == IMAGE)
    add_input_like(builder, image, IMAGE)
    for half in (halves.backbone, halves.domain):
        for name, value in half.graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None
            if name in fed:
                builder.input(name, tensor.dtype, tuple(tensor.shape.numpy()))
            else:
                builder.initializer(name, tensor)
    # Each half is in running order, but the halves take turns: the domain's part of one block comes
    # before the backbone's next block. So copy whatever can run now, until nothing is left.
    waiting = [*halves.backbone.graph, *halves.domain.graph]
    while waiting:
        ready = [n for n in waiting if all(builder.has(name) for name in input_names(n))]
        if not ready:
            raise SplitError(
                f"node {waiting[0].name!r} reads what neither half computes", fix="split again"
            )
        copied = {id(n) for n in ready}
        for node in ready:
            builder.copy(node)
        waiting = [n for n in waiting if id(n) not in copied]
    outputs = [v for half in (halves.backbone, halves.domain) for v in half.graph.outputs]
    for value in outputs:
        assert value.shape is not None
        assert value.dtype is not None
        builder.typed(value_name(value), value.dtype, batched(value.shape))
    return builder.model(
        [value_name(v) for v in outputs], ir_version=halves.backbone.ir_version, metadata={}
    )


def batched(shape: ir.Shape) -> list[int | str]:
    """Return a shape whose free dimension is called ``batch``."""
    return [d if isinstance(d, int) else BATCH for d in shape]


def add_input_like(builder: GraphBuilder, value: ir.Value, name: str) -> None:
    """Add an input with the type and shape of ``value``."""
    assert value.shape is not None
    assert value.dtype is not None
    builder.input(name, value.dtype, batched(value.shape))
