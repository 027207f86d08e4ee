"""Builds one flavour of a kit: parse each model, repair it, show that it is gated, build its plan.

Rules of this file: one model after another. Each network is gone before the next, because a small
board has not the memory for all of them. It stores nothing and runs nothing. The caller decides the
order of the models and what becomes of the plans.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.core.timing import Notify
from toolchain.device.engine import conditionals, tactics
from toolchain.device.engine.build import BuildOptions, BuiltPlan, build
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.kit import Kit, KitFlavour, KitModel
from toolchain.device.engine.log import SkippedTactic
from toolchain.device.engine.parse import (
    NetworkInput,
    ParsedNetwork,
    new_builder,
    parse,
    require_slots,
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One plan and how it was built.

    ``conditionals``: how many its network has. ``boundaries``: outer tensors that their branches
    read through input layers; ``repaired``: how many of these layers were added after parsing.
    ``skipped``: tactics that TensorRT left out for lack of memory.
    """

    file: str
    conditionals: int
    boundaries: int
    repaired: int
    plan_bytes: int
    seconds: float
    workspace_bytes: int
    skipped: tuple[SkippedTactic, ...]
    warnings: tuple[str, ...]


class Job:
    """Builds the models of ``flavour``, with ``free_bytes`` of free device memory.

    ``plans``: those built so far, by file name.
    """

    def __init__(
        self, kit: Kit, trt: TensorRT, flavour: KitFlavour, options: BuildOptions, free_bytes: int
    ) -> None:
        self._kit, self._trt, self._flavour = kit, trt, flavour
        self._options, self._free_bytes = options, free_bytes
        self._inputs: list[dict[str, NetworkInput]] = []
        self.plans: dict[str, BuiltPlan] = {}

    def piece(self, model: KitModel, notify: Notify, cache: object | None = None) -> Piece:
        """Make the plan of a model; raises as the steps do, ConditionalError among them."""
        notify(f"{self._flavour.flavour}: {model.file}")
        network = self._parsed(model)
        # As plain values, because the network itself is gone before the next model is parsed.
        self._inputs.append(network.interface())
        report = conditionals.repair(network.definition, self._trt)
        conditionals.require(report, conditionals=model.conditionals, pairs=model.boundaries)
        built = self.plans[model.file] = self._built(network, model, cache)
        return Piece(
            model.file,
            len(report.conditionals),
            len(report.pairs),
            report.added,
            len(built.plan),
            built.seconds,
            built.workspace_bytes,
            built.skipped,
            built.warnings,
        )

    def warm(self, model: KitModel, notify: Notify, cache: object) -> None:
        """Build a segment for its timings alone."""
        notify(f"timing {model.file}")
        self._built(self._parsed(model), model, cache)

    def open_cache(self, data: bytes) -> tuple[object, str]:
        """Return TensorRT's timing cache with earlier timings, and a note for the user."""
        with self._trt.journal.watch() as messages:
            builder = new_builder(self._trt, messages)
        return tactics.open_cache(self._trt, builder, data)

    def require_slots(self) -> None:
        """Raise EngineError unless the slots, and no other unknowns, are inputs of the models."""
        linkage = self._flavour.linkage
        # A network that folds the domain has them inside, and its kit lists none.
        slots = () if linkage.folds_domain else self._kit.manifest.slots
        require_slots(self._inputs, slots, whole=not linkage.is_segmented)

    def _parsed(self, model: KitModel) -> ParsedNetwork:
        sites = tuple(block.name for block in self._kit.backbone.blocks)
        data, layers = self._kit.read(model.file), self._kit.layers()
        return parse(self._trt, data, sites=sites, layers=layers, what=model.file)

    def _built(self, network: ParsedNetwork, model: KitModel, cache: object | None) -> BuiltPlan:
        return build(
            network,
            self._options,
            free_bytes=self._free_bytes,
            pinned=model.pinned,
            timing_cache=cache,
        )
