"""Cut a captured graph into the frozen backbone and the domain.

Rules of this file: it cuts by name, at the cut points. It requires a captured (and folded) graph.
It ensures that every node lies in exactly one half, and that every tensor with a state-dict name
lies in exactly one file. No torch and no onnxruntime. What the halves are says ``halves``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from toolchain.core.errors import SplitError
from toolchain.export.graph.builder import GraphBuilder, input_names, region, value_name
from toolchain.export.graph.halves import (
    META_ROLE,
    Halves,
    add_input_like,
    batched,
    cut_metadata,
)
from toolchain.export.graph.names import BACKBONE, BATCH, FEATURES, IMAGE, LOGITS, Cut, Opset


def cut_model(model: ir.Model, cuts: Sequence[Cut], slots: Iterable[str], dialect: Opset) -> Halves:
    """Cut ``model`` in two. Raises SplitError naming a node or tensor that has no single owner."""
    nodes = list(model.graph)
    # A block without an adaptor has no ``out.s`` in the captured graph: what follows reads
    # ``block.s``. The halves give it one (an Identity), so that every domain has the same taps.
    plain = {cut.output: cut.result for cut in cuts if not _defines(nodes, cut.result)}
    cuts = tuple(_renamed(cut, plain) for cut in cuts)
    outputs = {value_name(v) for v in model.graph.outputs}
    features = FEATURES if FEATURES in outputs else _features_alias(nodes, cuts)
    domain_nodes = _domain_nodes(nodes, cuts, features, plain)
    # The backbone's nodes: walk back from everything that it gives, and stop at what it reads, the
    # results of the adapted sites. An unadapted site's result is the backbone's own value.
    ends = [name for cut in cuts for name in (cut.input, cut.output)] + [features]
    backbone_nodes = region(
        nodes, ends + list(plain), [c.result for c in cuts if c.output not in plain]
    )
    _check_partition(nodes, backbone_nodes, domain_nodes)
    slots = tuple(sorted(slots))
    drawer = _HalvesDrawer(model, cuts, features, plain, dialect)
    return Halves(
        drawer.backbone(backbone_nodes, slots),
        drawer.domain(domain_nodes, slots),
        cuts,
        plain.get(features, features),
        slots,
    )


def _defines(nodes: Iterable[ir.Node], name: str) -> bool:
    return any(value_name(v) == name for node in nodes for v in node.outputs)


def _renamed(cut: Cut, plain: Mapping[str, str]) -> Cut:
    """Let an input that is an unadapted block's output have the name of that site's result."""
    return replace(cut, input=plain.get(cut.input, cut.input))


def _features_alias(nodes: list[ir.Node], cuts: Sequence[Cut]) -> str:
    """Return the site's result that the head reads directly."""
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
    """Return the nodes of adaptors, gates, joins and head.

    Walking back from what a domain gives at a site, everything up to the block's input and the
    block's output is the domain's: the block itself lies behind its output.
    """
    owned: set[int] = set()
    block_output = {result: output for output, result in plain.items()}
    for cut in cuts:
        if cut.output in plain:
            continue
        # The cut names an earlier unadapted block by its result, which the captured graph lacks.
        stops = [block_output.get(cut.input, cut.input), cut.output]
        targets = [n for n in (cut.correction, cut.gate, cut.result) if _defines(nodes, n)]
        owned.update(id(node) for node in region(nodes, targets, stops))
    owned.update(id(node) for node in region(nodes, [LOGITS], [features]))
    return [node for node in nodes if id(node) in owned]


def _check_partition(nodes: list[ir.Node], backbone: list[ir.Node], domain: list[ir.Node]) -> None:
    """Check that the two walks, which know nothing of each other, took each node exactly once."""
    in_backbone, in_domain = {id(n) for n in backbone}, {id(n) for n in domain}
    for node in nodes:
        owners = (id(node) in in_backbone) + (id(node) in in_domain)
        if owners != 1:
            what = "both halves need" if owners else "no half needs"
            raise SplitError(
                f"{what} node {node.name!r} ({node.op_type}), expected exactly one owner",
                fix="an adaptor may read its block's input only; check for shared shape arithmetic",
            )


class _HalvesDrawer:
    """Draws the two models; anonymous values get canonical names in each.

    The exporter numbers anonymous values over the whole model. Numbered anew in each half, the
    backbone's bytes depend on the backbone alone, whatever the domain looks like.
    """

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
        # Values that cross between the halves keep their names. All others are numbered anew.
        self.public_names = {value_name(v) for v in model.graph.outputs} | {IMAGE}

    def backbone(self, nodes: list[ir.Node], slots: tuple[str, ...]) -> ir.Model:
        builder = GraphBuilder("backbone", opset=self.dialect.opset)
        add_input_like(builder, self.image, IMAGE)
        for cut in self.cuts:
            builder.input(cut.result, ir.DataType.FLOAT, [BATCH, *cut.out_shape])
        rename = self._constants(builder, nodes, "c", forbidden=frozenset(slots))
        self._copy(builder, nodes, {**rename, **self._numbered(nodes, "v")})
        # A site's input is an output of the backbone, unless it is the picture or what an earlier
        # site gave: the domain has those already.
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
        self._type(builder, outputs)
        return self._model(builder, outputs, "backbone")

    def domain(self, nodes: list[ir.Node], slots: tuple[str, ...]) -> ir.Model:
        builder = GraphBuilder("domain", opset=self.dialect.opset)
        made = {value_name(v) for node in nodes for v in node.outputs} | set(self.plain.values())
        read = dict.fromkeys(name for node in nodes for name in input_names(node))
        for cut in self.cuts:
            for name, shape in ((cut.input, cut.in_shape), (cut.output, cut.out_shape)):
                if name in read and name not in made and not builder.has(name):
                    builder.input(name, ir.DataType.FLOAT, [BATCH, *shape])
        if self.features == FEATURES:
            add_input_like(builder, self._source_value(FEATURES), FEATURES)
        for output, result in self.plain.items():
            if not builder.has(output):
                shape = next(c.out_shape for c in self.cuts if c.output == output)
                builder.input(output, ir.DataType.FLOAT, [BATCH, *shape])
            builder.node("Identity", [output], result)
        rename = self._constants(builder, nodes, "k", forbidden=None)
        self._copy(builder, nodes, {**rename, **self._numbered(nodes, "w")})
        outputs = [
            name
            for cut in self.cuts
            for name in (cut.correction, cut.gate, cut.result)
            if builder.has(name)
        ]
        outputs.append(LOGITS)
        self._type(builder, outputs)
        missing = [slot for slot in slots if slot not in builder.initializers]
        if missing:
            raise SplitError(
                f"slots {missing} are used by no node of the domain",
                fix="remove the unused parameter from the adaptor",
            )
        return self._model(builder, outputs, "domain")

    def _numbered(self, nodes: list[ir.Node], prefix: str) -> dict[str, str]:
        """Map the anonymous values that ``nodes`` make to ``<prefix>0``, ``<prefix>1``, ..."""
        made = [value_name(v) for node in nodes for v in node.outputs if v.name]
        anonymous = [name for name in made if name not in self.public_names]
        return {name: f"{prefix}{i}" for i, name in enumerate(anonymous)}

    def _constants(
        self,
        builder: GraphBuilder,
        nodes: list[ir.Node],
        prefix: str,
        forbidden: frozenset[str] | None,
    ) -> dict[str, str]:
        """Copy the tensors that ``nodes`` read; those with a state-dict name keep it.

        ``forbidden``: tensors of the other half; None forbids the backbone's. Returns new names by
        old ones.
        """
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
            # A dot in the name of a domain's tensor means a state-dict name. Constants that the
            # exporter made have none.
            has_own_name = frozen or (forbidden is None and "." in name)
            rename[name] = name if has_own_name else f"{prefix}{len(rename)}"
            builder.initializer(rename[name], value.const_value)
        return rename

    def _copy(self, builder: GraphBuilder, nodes: list[ir.Node], rename: dict[str, str]) -> None:
        for node in nodes:
            read = set(input_names(node))
            # Whoever reads an unadapted block's output reads that site's result instead; the block
            # itself still makes the output under its own name.
            redirected = {o: r for o, r in self.plain.items() if o in read}
            builder.copy(node, {**rename, **redirected})

    def _type(self, builder: GraphBuilder, outputs: Iterable[str]) -> None:
        block_output = {result: output for output, result in self.plain.items()}
        for name in outputs:
            source = self._source_value(block_output.get(name, name))
            assert source.shape is not None
            assert source.dtype is not None
            builder.typed(name, source.dtype, batched(source.shape))

    def _source_value(self, name: str) -> ir.Value:
        return next(v for v in self.source.outputs if v.name == name)

    def _model(self, builder: GraphBuilder, outputs: list[str], role: str) -> ir.Model:
        features = self.plain.get(self.features, self.features)
        return builder.model(
            outputs,
            ir_version=self.dialect.ir_version,
            metadata={META_ROLE: role, **cut_metadata(self.cuts, features)},
        )
