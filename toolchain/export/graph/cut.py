"""Split a captured graph into the frozen backbone and the domain.

Rules of this file: cutting is by name, at the cut points; requires a captured (and folded) graph,
ensures that every node lies in exactly one half and every tensor that carries a state-dict name in
exactly one file. No torch and no onnxruntime: what was split can be read back and linked anywhere.

The halves, both plain ONNX models:

* backbone: reads ``image`` and every site's ``out.s``; gives every ``in.s``, ``block.s`` and the
  features. It is cut at *all* blocks, adapted or not, so one file serves every method and option.
* domain: reads what the backbone gives; holds adaptors, gates, the dense join (``Where``, ``Add``)
  and the head; gives every ``out.s`` and the logits. For a block without an adaptor ``out.s`` is an
  ``Identity``.

Law: :func:`recompose` of the halves answers as the captured graph does, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import onnx_ir as ir

from toolchain.core.errors import SplitError
from toolchain.export.graph.builder import Sketch, input_names, region, value_name
from toolchain.export.graph.names import (
    BACKBONE,
    BATCH,
    FEATURES,
    IMAGE,
    LOGITS,
    Cut,
    Opset,
)

META_CUTS, META_FEATURES, META_ROLE = "da3.cuts", "da3.features", "da3.role"


@dataclass(frozen=True, slots=True)
class Split:
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
        given = {value_name(v) for v in self.domain.graph.outputs}
        return tuple(cut.gate for cut in self.cuts if cut.gate in given)

    @property
    def adapted(self) -> tuple[Cut, ...]:
        """The sites that have an adaptor."""
        given = {value_name(v) for v in self.domain.graph.outputs}
        return tuple(cut for cut in self.cuts if cut.correction in given)


def split(model: ir.Model, cuts: Sequence[Cut], slots: Iterable[str], dialect: Opset) -> Split:
    """Cut ``model`` in two. Raises SplitError naming a node or tensor that has no single owner."""
    nodes = list(model.graph)
    plain = {cut.output: cut.result for cut in cuts if not _defines(nodes, cut.result)}
    cuts = tuple(_renamed(cut, plain) for cut in cuts)
    names = {value_name(v) for v in model.graph.outputs}
    features = FEATURES if FEATURES in names else _features_alias(nodes, cuts)
    domain_nodes = _domain_nodes(nodes, cuts, features, plain)
    ends = [name for cut in cuts for name in (cut.input, cut.output)] + [features]
    backbone_nodes = region(
        nodes, ends + list(plain), [c.result for c in cuts if c.output not in plain]
    )
    _check_partition(nodes, backbone_nodes, domain_nodes)
    slots = tuple(sorted(slots))
    halves = _Halves(model, cuts, features, plain, dialect)
    return Split(
        halves.backbone(backbone_nodes, slots),
        halves.domain(domain_nodes, slots),
        cuts,
        plain.get(features, features),
        slots,
    )


def _defines(nodes: Iterable[ir.Node], name: str) -> bool:
    return any(value_name(v) == name for node in nodes for v in node.outputs)


def _renamed(cut: Cut, plain: Mapping[str, str]) -> Cut:
    """A block's input that is an unadapted block's output is that site's result."""
    return replace(cut, input=plain.get(cut.input, cut.input))


def _features_alias(nodes: list[ir.Node], cuts: Sequence[Cut]) -> str:
    """The head reads a site's result directly: find which."""
    candidates = {cut.result for cut in cuts} | {cut.output for cut in cuts}
    head = region(nodes, [LOGITS], candidates)
    read = {name for node in head for name in input_names(node)} & candidates
    if len(read) != 1:
        raise SplitError(
            f"the head reads {sorted(read) or 'no cut point'}, expected exactly one features map",
            fix="attach with head='<the last Linear layer>'",
        )
    return read.pop()


def _domain_nodes(
    nodes: list[ir.Node], cuts: Sequence[Cut], features: str, plain: Mapping[str, str]
) -> list[ir.Node]:
    mine: set[int] = set()
    back = {result: output for output, result in plain.items()}
    for cut in cuts:
        if cut.output in plain:
            continue
        stops = [back.get(cut.input, cut.input), cut.output]
        targets = [n for n in (cut.correction, cut.gate, cut.result) if _defines(nodes, n)]
        mine.update(id(node) for node in region(nodes, targets, stops))
    mine.update(id(node) for node in region(nodes, [LOGITS], [features]))
    return [node for node in nodes if id(node) in mine]


def _check_partition(nodes: list[ir.Node], backbone: list[ir.Node], domain: list[ir.Node]) -> None:
    ours, theirs = {id(n) for n in backbone}, {id(n) for n in domain}
    for node in nodes:
        owners = (id(node) in ours) + (id(node) in theirs)
        if owners != 1:
            what = "both halves need" if owners else "no half needs"
            raise SplitError(
                f"{what} node {node.name!r} ({node.op_type}), expected exactly one owner",
                fix="an adaptor may read its block's input only; check for shared shape arithmetic",
            )


class _Halves:
    """Builds the two models; anonymous values get canonical names in each."""

    def __init__(
        self,
        model: ir.Model,
        cuts: Sequence[Cut],
        features: str,
        plain: Mapping[str, str],
        dialect: Opset,
    ) -> None:
        self.source = model.graph
        self.cuts = cuts
        self.features = features
        self.plain = plain
        self.dialect = dialect
        self.image = next(v for v in model.graph.inputs if v.name == IMAGE)
        self.kept = {value_name(v) for v in model.graph.outputs} | {IMAGE}

    def backbone(self, nodes: list[ir.Node], slots: tuple[str, ...]) -> ir.Model:
        sketch = Sketch("backbone", opset=self.dialect.opset)
        _like(sketch, self.image, IMAGE)
        for cut in self.cuts:
            sketch.input(cut.result, ir.DataType.FLOAT, [BATCH, *cut.out_shape])
        rename = self._constants(sketch, nodes, "c", forbidden=frozenset(slots))
        self._copy(sketch, nodes, {**rename, **self._numbered(nodes, "v")})
        outputs = list(
            dict.fromkeys(
                name
                for cut in self.cuts
                for name in (cut.input, cut.output)
                if name != IMAGE and name not in {c.result for c in self.cuts}
            )
        )
        if self.features == FEATURES:
            outputs.append(FEATURES)
        self._type(sketch, outputs)
        return self._model(sketch, outputs, "backbone")

    def domain(self, nodes: list[ir.Node], slots: tuple[str, ...]) -> ir.Model:
        sketch = Sketch("domain", opset=self.dialect.opset)
        made = {value_name(v) for node in nodes for v in node.outputs} | set(self.plain.values())
        read = dict.fromkeys(name for node in nodes for name in input_names(node))
        for cut in self.cuts:
            for name, shape in ((cut.input, cut.in_shape), (cut.output, cut.out_shape)):
                if name in read and name not in made and not sketch.has(name):
                    sketch.input(name, ir.DataType.FLOAT, [BATCH, *shape])
        if self.features == FEATURES:
            _like(sketch, self._source_value(FEATURES), FEATURES)
        for output, result in self.plain.items():
            if not sketch.has(output):
                shape = next(c.out_shape for c in self.cuts if c.output == output)
                sketch.input(output, ir.DataType.FLOAT, [BATCH, *shape])
            sketch.node("Identity", [output], result)
        rename = self._constants(sketch, nodes, "k", forbidden=None)
        self._copy(sketch, nodes, {**rename, **self._numbered(nodes, "w")})
        outputs = [
            name
            for cut in self.cuts
            for name in (cut.correction, cut.gate, cut.result)
            if sketch.has(name)
        ]
        outputs.append(LOGITS)
        self._type(sketch, outputs)
        missing = [slot for slot in slots if slot not in sketch.initializers]
        if missing:
            raise SplitError(
                f"slots {missing} are used by no node of the domain",
                fix="remove the unused parameter from the adaptor",
            )
        return self._model(sketch, outputs, "domain")

    def _numbered(self, nodes: list[ir.Node], prefix: str) -> dict[str, str]:
        inner = [value_name(v) for node in nodes for v in node.outputs if v.name]
        return {
            name: f"{prefix}{i}" for i, name in enumerate(n for n in inner if n not in self.kept)
        }

    def _constants(
        self, sketch: Sketch, nodes: list[ir.Node], prefix: str, forbidden: frozenset[str] | None
    ) -> dict[str, str]:
        """Copy the tensors that ``nodes`` read; named ones keep their names."""
        rename: dict[str, str] = {}
        for name in dict.fromkeys(n for node in nodes for n in input_names(node)):
            value = self.source.initializers.get(name)
            if value is None:
                continue
            assert value.const_value is not None
            frozen = name.startswith(BACKBONE)
            if (forbidden is not None and name in forbidden) or (forbidden is None and frozen):
                raise SplitError(
                    f"tensor {name!r} is read by both halves",
                    fix="an adaptor may not share a tensor with the backbone",
                )
            named = frozen or (forbidden is None and "." in name)
            rename[name] = name if named else f"{prefix}{len(rename)}"
            sketch.initializer(rename[name], value.const_value)
        return rename

    def _copy(self, sketch: Sketch, nodes: list[ir.Node], rename: dict[str, str]) -> None:
        for node in nodes:
            read = set(input_names(node))
            joined = {o: r for o, r in self.plain.items() if o in read}
            sketch.copy(node, {**rename, **joined})

    def _type(self, sketch: Sketch, outputs: Iterable[str]) -> None:
        for name in outputs:
            original = {r: o for o, r in self.plain.items()}.get(name, name)
            source = self._source_value(original)
            assert source.shape is not None
            assert source.dtype is not None
            sketch.typed(name, source.dtype, _dims(source.shape))

    def _source_value(self, name: str) -> ir.Value:
        return next(v for v in self.source.outputs if v.name == name)

    def _model(self, sketch: Sketch, outputs: list[str], role: str) -> ir.Model:
        return sketch.model(
            outputs,
            ir_version=self.dialect.ir_version,
            metadata={
                META_ROLE: role,
                META_CUTS: json.dumps([asdict(cut) for cut in self.cuts], sort_keys=True),
                META_FEATURES: self.plain.get(self.features, self.features),
            },
        )


def _dims(shape: ir.Shape) -> list[int | str]:
    return [d if isinstance(d, int) else BATCH for d in shape]


def _like(sketch: Sketch, value: ir.Value, name: str) -> None:
    assert value.shape is not None
    assert value.dtype is not None
    sketch.input(name, value.dtype, _dims(value.shape))


def read_split(backbone: ir.Model, domain: ir.Model) -> Split:
    """Join two halves that were read from files. Raises SplitError when they do not fit."""
    cuts, features = _metadata(backbone)
    others, other_features = _metadata(domain)
    if cuts != others or features != other_features:
        raise SplitError(
            "backbone.onnx and domain.onnx were cut at different places",
            fix="export the domain again with this backbone",
        )
    slots = tuple(sorted(n for n in domain.graph.initializers if "." in n))
    return Split(backbone, domain, cuts, features, slots)


def _metadata(model: ir.Model) -> tuple[tuple[Cut, ...], str]:
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


def recompose(halves: Split) -> ir.Model:
    """Put the halves together again without any optimisation: the proof of the split.

    Returns a model with the outputs of both halves.
    """
    opset = halves.backbone.graph.opset_imports[""]
    sketch = Sketch("recomposed", opset=opset)
    image = next(v for v in halves.backbone.graph.inputs if v.name == IMAGE)
    _like(sketch, image, IMAGE)
    for half in (halves.backbone, halves.domain):
        for name, value in half.graph.initializers.items():
            assert value.const_value is not None
            sketch.initializer(name, value.const_value)
    waiting = [*halves.backbone.graph, *halves.domain.graph]
    while waiting:
        ready = [n for n in waiting if all(sketch.has(name) for name in input_names(n))]
        if not ready:
            raise SplitError(
                f"node {waiting[0].name!r} reads what neither half computes", fix="split again"
            )
        done = {id(n) for n in ready}
        for node in ready:
            sketch.copy(node)
        waiting = [n for n in waiting if id(n) not in done]
    outputs = [v for half in (halves.backbone, halves.domain) for v in half.graph.outputs]
    for value in outputs:
        assert value.shape is not None
        assert value.dtype is not None
        sketch.typed(value_name(value), value.dtype, _dims(value.shape))
    return sketch.model(
        [value_name(v) for v in outputs], ir_version=halves.backbone.ir_version, metadata={}
    )
