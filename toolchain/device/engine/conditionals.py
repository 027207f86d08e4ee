"""Conditionals of a parsed network: what each branch reads from outside, and through what.

Rules of this file: it works on layers and tensors of ``INetworkDefinition``. It adds conditional
input layers, rewires the layers that read them, and changes nothing else. TensorRT skips a branch
only if everything that the branch reads from outside comes through an input layer of that
conditional (TensorRT developer guide, "Conditionals"; ``IIfConditional::addInput``). The ONNX
parser of 8.6 to 10.5 leaves most of these layers out, and then both branches run (NVIDIA/TensorRT
#4402). If a network may lack one of them, :func:`require` refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from toolchain.core.errors import ConditionalError, first_few
from toolchain.device.engine.branches import Conditional, NetworkLayers, OuterRead, conditionals
from toolchain.device.engine.features import TensorRT


@dataclass(frozen=True, slots=True)
class BranchInput:
    """A tensor that a branch reads from outside."""

    conditional: str
    branch: str
    tensor: str


@dataclass(frozen=True, slots=True)
class ConditionalInput:
    """A tensor that a conditional reads from outside, in either branch or in both."""

    conditional: str
    tensor: str


@dataclass(frozen=True, slots=True)
class ConditionalReport:
    """What the conditionals of a network read from outside, and what :func:`repair` added.

    ``entries``: what branches read through an input layer of their own conditional; constants are
    left out, as parsers differ in how many of them they share. ``missing``: what branches read
    directly, constants too. ``left``: what cannot be decided, one sentence each. ``layers``: input
    layers that somebody reads; the branches of one conditional may share one. ``added``: how many
    of these :func:`repair` added.
    """

    conditionals: tuple[str, ...]
    entries: frozenset[BranchInput]
    missing: frozenset[BranchInput]
    left: tuple[str, ...]
    layers: int
    added: int = 0

    @property
    def pairs(self) -> frozenset[ConditionalInput]:
        """The entries without their branch: the kit says how many there must be."""
        return frozenset(
            ConditionalInput(entry.conditional, entry.tensor) for entry in self.entries
        )


def examine(network: Any, trt: TensorRT) -> ConditionalReport:
    """Return what each conditional of ``network`` reads, and how. Changes nothing."""
    walked = NetworkLayers(network, trt)
    return _report(conditionals(walked, trt), _live(walked, trt), added=0)


def repair(network: Any, trt: TensorRT) -> ConditionalReport:
    """Add the input layers that are missing, one per conditional and outer tensor.

    Every layer of both branches that reads the tensor directly is wired to the new layer. If there
    is already a layer for the tensor, it serves. A conditional that is undecided stays as it is.
    Returns the state afterwards.
    """
    walked = NetworkLayers(network, trt)
    added = sum(_repair_one(walked, item) for item in conditionals(walked, trt))
    # Read anew: the report must say what the network has now, and not what was meant to be added.
    again = NetworkLayers(network, trt)
    return _report(conditionals(again, trt), _live(again, trt), added)


def require(report: ConditionalReport, *, conditionals: int, pairs: int) -> None:
    """Compare a network with its ONNX model: the number of ``If`` nodes, and of their inputs.

    ``pairs``: pairs of an ``If`` and an outer tensor that it reads. Raises ConditionalError for
    another count, and for whatever is missing or undecided: nobody may call an engine gated whose
    network does not show it.
    """
    faults = [
        f"{entry.tensor!r} enters {entry.conditional}/{entry.branch} directly"
        for entry in sorted(report.missing, key=lambda e: (e.conditional, e.branch, e.tensor))
    ]
    faults += report.left
    if len(report.conditionals) != conditionals:
        faults.append(f"expected {conditionals} conditionals, got {len(report.conditionals)}")
    if len(report.pairs) != pairs:
        faults.append(f"expected {pairs} outer tensors to be read, got {len(report.pairs)}")
    if faults:
        raise ConditionalError(
            "expected every branch to read outer tensors through input layers of its conditional:"
            "\n  " + first_few(faults, 20, "\n  "),
            fix="closed gates might not skip; build the flavour staged or static instead",
        )


def _live(walked: NetworkLayers, trt: TensorRT) -> int:
    """Return how many conditional input layers somebody reads."""
    read = {walked.source(tensor) for inputs in walked.inputs for _, tensor in inputs}
    return len(read.intersection(walked.places(trt.module.LayerType.CONDITIONAL_INPUT)))


def _report(items: Sequence[Conditional], layers: int, added: int) -> ConditionalReport:
    return ConditionalReport(
        conditionals=tuple(item.name for item in items),
        entries=frozenset(
            entry
            for item in items
            for entry in _entries(item, [read for read in item.bounded if not read.constant])
        ),
        missing=frozenset(entry for item in items for entry in _entries(item, item.direct)),
        left=tuple(line for item in items for line in item.left),
        layers=layers,
        added=added,
    )


def _entries(item: Conditional, reads: Sequence[OuterRead]) -> Iterator[BranchInput]:
    return (BranchInput(item.name, read.branch, read.tensor.name) for read in reads)


def _repair_one(walked: NetworkLayers, item: Conditional) -> int:
    """Wire the direct reads of one conditional; returns how many layers that took."""
    # What is undecided is not guessed at; ``require`` refuses it.
    if item.left:
        return 0
    # By outer tensor: the tensor inside the conditional that stands for it. A layer that the parser
    # made for the other branch is used again, so that the conditional has one for each tensor.
    inside: dict[int, Any] = {id(read.tensor): None for read in item.direct}
    for read in item.bounded:
        if id(read.tensor) in inside:
            inside[id(read.tensor)] = walked.layers[read.reader].get_input(read.slot)
    added = 0
    for read in item.direct:
        if inside[id(read.tensor)] is None:
            layer = item.handle.add_input(read.tensor)
            layer.name = f"{read.tensor.name}/into/{item.name}"
            layer.get_output(0).name = f"{read.tensor.name}/in/{item.name}"
            inside[id(read.tensor)] = layer.get_output(0)
            added += 1
        walked.layers[read.reader].set_input(read.slot, inside[id(read.tensor)])
    return added
