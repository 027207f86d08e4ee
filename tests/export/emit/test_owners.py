"""Whose a node is, and models whose every value has a type."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.support.cases import CASES, made
from tests.support.small_models import linked, text
from toolchain.bundle.linkage import Flavour, Linkage
from toolchain.core.errors import ModelRefusedError, PrecisionError
from toolchain.export.emit.owners import is_domain, loaded, stated, walk
from toolchain.export.graph.link import link
from toolchain.export.graph.stage import stage

FLAVOURS: tuple[Flavour, ...] = ("swap", "static")


@pytest.mark.parametrize("name", CASES)
def test_a_node_is_the_domains_exactly_if_it_comes_from_that_half(name: str) -> None:
    halves = made(name).loaded()
    theirs = {v.name for node in halves.domain.graph for v in node.outputs}
    frozen = {v.name for node in halves.backbone.graph for v in node.outputs}
    for _, node in walk(linked(made(name))):
        names = {v.name for v in node.outputs if v.name}
        if names & frozen or any("out." in (v or "") for v in names):
            assert not is_domain(node), node.name
        elif names & theirs:
            assert is_domain(node), node.name
        else:
            # What linking adds: the gate's state, and the gates side by side.
            assert is_domain(node), node.name
            assert node.op_type in ("GreaterOrEqual", "Reshape", "Squeeze", "Concat")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_value_gets_a_type_in_branches_too(flavour: Flavour) -> None:
    model = loaded(linked(made("tokens"), flavour))
    assert all(v.dtype for _, node in walk(model) for v in node.outputs if v.name)
    assert any(graph is not model.graph for graph, _ in walk(model))


def test_the_given_model_is_left_alone() -> None:
    model = linked(made("plain"))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    loaded(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_references_into_files_are_refused_by_name() -> None:
    model = link(made("plain").halves, Linkage("swap", "if"))
    with pytest.raises(PrecisionError, match=r"backbone\.stem.*got a reference"):
        loaded(model)
    with pytest.raises(PrecisionError, match="load_tensors"):
        loaded(stage(made("plain").halves).sites[0].opened)


def test_types_that_contradict_each_other_are_refused() -> None:
    model = text(
        """<ir_version: 10, opset_import: ["": 18]>
        g (float[2] x, float16[2] y) => (float[2] logits) { logits = Add(x, y) }"""
    )
    with pytest.raises(ModelRefusedError, match="contradict"):
        stated(model)
