"""What each method's training keeps, allocates, takes and stores, side by side.

Rules of this file: every method gets the same pictures, drawn from a seed, and the same backbone.
Its weights need not be trained: bytes do not depend on values. Time would depend on gates alone, so
gates are forced. Memory is counted one method after the other (``training.memory``). Time is taken
interleaved, relative to fine-tuning. This file prints and draws nothing. ``bench.memory`` has
another subject: what domains cost where they run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor, nn

from toolchain import training
from toolchain.bench import machine
from toolchain.core.errors import AttachError, UnknownNameError, UsageError
from toolchain.core.timing import WALL, Notify, Timing, clock_of, interleaved
from toolchain.recipe import AdaptorOptions, TrainSpec
from toolchain.training.adapt import backbones
from toolchain.training.adapt.attached import AttachedModel, attach
from toolchain.training.adapt.blocks import examine
from toolchain.training.adapt.loss import training_loss
from toolchain.training.adapt.methods import REGISTRY
from toolchain.training.adapt.overrides import Selection
from toolchain.training.lean.ledger import HOW_KEPT, Stored, stored
from toolchain.training.lean.options import Keep
from toolchain.training.memory.analytic import analytic
from toolchain.training.memory.fit import domain_bytes, fitting, need
from toolchain.training.memory.measured import HOW_PEAK, peak

REFERENCE = "finetune"
OURS = "da3"
CLASSES = 10
AGREEMENT = 0.05
LARGEST = 5
BUDGET_SUFFIX = ", gates"


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One row of the comparison: a method, and how it keeps the inputs of trained layers.

    ``keep``: the precision in which they wait for the backward pass; None runs PyTorch's layers.
    """

    name: str
    method: str
    keep: Keep | None


@dataclass(frozen=True, slots=True)
class FootprintSetup:
    """What is compared and how.

    ``side`` None is the backbone's own; ``rounds`` of timing, 0 for none; ``budget`` the share of
    the backbone's multiply-adds at which da3 is timed beside all gates open.
    """

    backbone: str
    side: int | None = None
    batch: int = 8
    methods: Sequence[str] = ("all",)
    rounds: int = 5
    threads: int = 1
    budget: float = 0.6
    seed: int = 0
    device: str = "cpu"


def default_keep() -> Keep:
    """Return the precision that a recipe has where it says nothing."""
    (keep,) = (item.default for item in fields(TrainSpec) if item.name == "keep")
    assert keep in get_args(Keep)
    return keep  # type: ignore[return-value]


def rows() -> dict[str, MethodRow]:
    """Return every row by its name: the methods as `da3 train` runs them, da3 in each precision."""
    keep, by_name = default_keep(), {}
    for name, method in REGISTRY.items():
        by_name[name] = MethodRow(name, name, keep if method.lean else None)
    for precision in get_args(Keep):
        if precision != keep:
            by_name[f"{OURS}-{precision}"] = MethodRow(f"{OURS}-{precision}", OURS, precision)
    return by_name


def rows_of(names: Sequence[str]) -> list[MethodRow]:
    """Return the rows of ``names``, or every row for ``all``.

    Fine-tuning comes first, because the others are compared with it.

    Raises UnknownNameError.
    """
    known = rows()
    row_names = list(known) if "all" in names else list(names)
    for name in row_names:
        if name not in known:
            raise UnknownNameError("method", name, (*known, "all"))
    return [known[name] for name in dict.fromkeys((REFERENCE, *row_names))]


def measure(setup: FootprintSetup, *, notify: Notify = lambda _: None) -> dict[str, Any]:
    """Return ``{"conditions": ..., backbone: {method: figures}}``, bytes and ratios.

    The number of PyTorch's threads is ``setup.threads`` meanwhile. Raises UnknownNameError (method,
    backbone), UsageError, and what attaching and training raise.
    """
    _check(setup)
    compared = rows_of(setup.methods)
    side = setup.side or backbones.get(setup.backbone).input_size
    before = torch.get_num_threads()
    torch.set_num_threads(setup.threads)
    try:
        bench = MethodBench(load(setup.backbone), side, setup)
        figures: dict[str, dict[str, Any]] = {}
        left_out: dict[str, str] = {}
        for row in compared:
            notify(f"{setup.backbone}: {row.name}, memory")
            try:
                figures[row.name] = bench.memory(row)
            except AttachError as err:
                if row.name == REFERENCE:
                    raise
                left_out[row.name] = err.message
        measured = [row for row in compared if row.name in figures]
        for name, ratios in bench.times(measured, notify).items():
            figures[name] |= ratios
    finally:
        torch.set_num_threads(before)
    return {
        "conditions": {
            "machine": machine.machine(),
            "versions": machine.versions(),
            "how_kept": HOW_KEPT,
            "how_peak": HOW_PEAK[setup.device],
            "runs": {setup.backbone: _conditions(setup, side) | {"left_out": left_out}},
        },
        setup.backbone: figures,
    }


def fits(setup: FootprintSetup, budget: int, notify: Notify = lambda _: None) -> dict[str, Any]:
    """Return what fits into ``budget`` bytes beside the frozen weights, best first.

    It counts and runs no training. Every method of the setup is tried, da3 first and the head alone
    last; ``notify`` hears of each. Raises UsageError for a setup that cannot be measured, as
    :func:`measure`, and MemoryBudgetError when nothing fits.
    """
    _check(setup)
    methods = {row.method for row in rows_of(setup.methods)}
    if "all" not in setup.methods and REFERENCE not in setup.methods:
        methods.discard(REFERENCE)
    side = setup.side or backbones.get(setup.backbone).input_size
    # From exact gradients on: what approximates comes later.
    model = attach(
        load(setup.backbone),
        method=OURS,
        classes=CLASSES,
        input_shape=(3, side, side),
        lean=True,
        **backbones.get(setup.backbone).joints,
    )
    order = sorted(methods, key=lambda m: (m != OURS, m == "head", list(REGISTRY).index(m)))
    choices = fitting(model, budget, setup.batch, methods=order, notify=notify)
    weights = (*model.backbone.parameters(), *model.backbone.buffers())
    return {
        "backbone": setup.backbone,
        "input": side,
        "batch": setup.batch,
        "budget": budget,
        "weights_bytes": sum(t.numel() * t.element_size() for t in weights),
        "choices": [
            {**asdict(choice), "needed": choice.need.total, "text": str(choice)}
            for choice in choices
        ],
    }


def found_device(device: str) -> str:
    """Return the device to train on, ``auto`` being the GPU that PyTorch finds, else the CPU.

    Raises UsageError for ``cuda`` where there is none.
    """
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UsageError(
            "expected an NVIDIA GPU that PyTorch can use, got none", fix="use --device cpu"
        )
    return ("cuda" if there else "cpu") if device == "auto" else device


def load(name: str) -> nn.Module:
    """Return a backbone with the weights that it ships, else untrained ones from a seed."""
    shipped = backbones.get(name).weights == "shipped"
    return training.load_backbone(name, untrained_seed=None if shipped else 0)


def _check(setup: FootprintSetup) -> None:
    if setup.batch < 1 or setup.rounds < 0 or setup.threads < 1:
        raise UsageError(
            f"expected a batch and threads of at least 1 and rounds of at least 0, got "
            f"{setup.batch}, {setup.threads} and {setup.rounds}",
            fix="use batch=8",
        )


def _conditions(setup: FootprintSetup, side: int) -> dict[str, Any]:
    return {
        "input": side,
        "classes": CLASSES,
        **{key: value for key, value in asdict(setup).items() if key not in ("side", "methods")},
    }


class MethodBench:
    """One backbone with its pictures ``[N, 3, side, side]``, drawn from the setup's seed."""

    def __init__(self, backbone: nn.Module, side: int, setup: FootprintSetup) -> None:
        self.setup, self.side = setup, side
        self.device = torch.device(setup.device)
        self.backbone = backbone.to(self.device)
        generator = torch.Generator().manual_seed(setup.seed)
        shape = (setup.batch, 3, side, side)
        self.images = torch.randn(shape, generator=generator).to(self.device)
        labels = torch.randint(0, CLASSES, (setup.batch,), generator=generator)
        self.labels = labels.to(self.device)

    def attached(self, row: MethodRow, *, lean: bool = True) -> AttachedModel:
        """Return the backbone with a fresh domain that trains as ``row`` says, all gates open."""
        keep = row.keep if lean and row.keep is not None else False
        shape = (3, self.side, self.side)
        selection: Selection = {}
        backbone = self.backbone.cpu()
        joints = backbones.get(self.setup.backbone).joints
        if (by_size := REGISTRY[row.method].by_size) is not None:
            anatomy = examine(backbone, shape, **joints)
            selection = by_size(backbone, anatomy, AdaptorOptions())
        model = attach(
            backbone,
            method=row.method,
            classes=CLASSES,
            input_shape=shape,
            lean=keep,
            selection=selection,
            **joints,
        ).to(self.device)
        model.train()
        model.forced = self.opened(model, 1.0)
        return model

    def opened(self, model: AttachedModel, budget: float) -> dict[str, Tensor]:
        """Return decisions ``[N, 1]`` by block, closed at random until the share is ``budget``."""
        gated = {name: site for name, site in model.sites.items() if site.gateable}
        count, total = self.setup.batch, float(model.anatomy.flops)
        generator = torch.Generator().manual_seed(self.setup.seed)
        decisions = {name: torch.ones(count, 1) for name in gated}
        cells = [(name, row) for name in gated for row in range(count)]
        share = 1.0
        for place in torch.randperm(len(cells), generator=generator).tolist():
            name, row = cells[place]
            saved = gated[name].flops / total / count
            # Half a cell over or under: the nearest that closing whole blocks can come.
            if share - saved / 2 < budget:
                continue
            decisions[name][row] = 0
            share -= saved
        return {name: decision.to(self.device) for name, decision in decisions.items()}

    def loss(self, model: AttachedModel) -> Tensor:
        """Run the forward of a training step; return its loss, a scalar."""
        trace = model.trace(self.images, maps=False)
        assert trace.logits is not None
        share = model.executed_share(trace).to(self.device)
        return training_loss(trace.logits, self.labels, share, budget=self.setup.budget, weight=1.0)

    def step(self, model: AttachedModel) -> Callable[[], None]:
        """Return a whole training step that leaves no gradient behind."""
        # So small a rate that the weights, and so the work of every round, stay as they are.
        optimiser = torch.optim.AdamW(model.domain.parameters(), lr=1e-6)

        def run() -> None:
            self.loss(model).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    def memory(self, row: MethodRow) -> dict[str, Any]:
        """Return a row's figures but for time; AttachError: the backbone cannot take the method."""
        model = self.attached(row)
        measured = self._stored(model)
        counted = analytic(model, self.setup.batch)
        # The same by PyTorch's own layers: what the method is usually taken to cost.
        stock = self._stored(self.attached(row, lean=False)).bytes
        needs = need(model, self.setup.batch)
        step = self.step(model)
        step()  # the first one makes the optimiser's moments
        gc.collect()
        highest = peak(step, device=self.device.type) + needs.optimiser
        agreement = counted.bytes / measured.bytes - 1 if measured.bytes else 0.0
        return {
            "method": row.method,
            "keep": row.keep,
            "stored_measured": measured.bytes,
            "stored_analytic": counted.bytes,
            "stored_stock": stock,
            "agreement": agreement,
            "explanation": _explained(measured, counted) if abs(agreement) > AGREEMENT else None,
            "peak": highest,
            "peak_by_rule": needs.step - needs.parameters,
            "optimiser": needs.optimiser,
            "gradients": needs.gradients,
            "trainable": needs.trainable,
            "domain_bytes": domain_bytes(model),
            "largest": dict(measured.largest(LARGEST)),
            "stock_layers": dict(counted.stock),
        }

    def _stored(self, model: AttachedModel) -> Stored:
        return stored(model, lambda: self.loss(model), ignored=(self.images, self.labels))

    def times(self, compared: Sequence[MethodRow], notify: Notify) -> dict[str, dict[str, Any]]:
        """Return each row's step time relative to the first one's, da3's also at its budget."""
        if not self.setup.rounds:
            return {}
        steps: dict[str, Callable[[], object]] = {}
        shares: dict[str, float] = {}
        for row in compared:
            for name, model, share in self._timed(row):
                steps[name], shares[name] = self.step(model), share
        timings = interleaved(
            steps,
            rounds=self.setup.rounds,
            clock=WALL if self.device.type == "cuda" else clock_of(self.setup.threads),
            notify=lambda text: notify(f"{self.setup.backbone}: time, {text}"),
        )
        figures: dict[str, dict[str, Any]] = {}
        for name, timing in timings.items():
            row_name = name.removesuffix(BUDGET_SUFFIX)
            suffix = "_budget" if name != row_name else ""
            figures.setdefault(row_name, {}).update(_step_figures(timing, suffix))
            if suffix:
                figures[row_name]["executed_share"] = shares[name]
        return figures

    def _timed(self, row: MethodRow) -> Iterator[tuple[str, AttachedModel, float]]:
        model = self.attached(row)
        yield row.name, model, 1.0
        if row.method != OURS:
            return
        twin = self.attached(row)
        twin.forced = self.opened(twin, self.setup.budget)
        with torch.no_grad():
            share = twin.executed_share(twin.trace(self.images, maps=False)).mean()
        yield f"{row.name}{BUDGET_SUFFIX}", twin, float(share)


def _step_figures(timing: Timing, suffix: str) -> dict[str, Any]:
    return {
        f"step_ratio{suffix}": timing.ratio,
        f"step_ratio_quartiles{suffix}": list(timing.ratio_quartiles),
        f"step_ms{suffix}": timing.median_ms,
    }


def _explained(measured: Stored, counted: Stored) -> str:
    """Name the layers that keep something else than the rules say."""
    names = {*measured.by_layer, *counted.by_layer}
    apart = {name: measured.by_layer.get(name, 0) - counted.by_layer.get(name, 0) for name in names}
    worst = sorted(apart.items(), key=lambda item: -abs(item[1]))[:LARGEST]
    listed = ", ".join(f"{name or 'the loss'} {gap:+d} bytes" for name, gap in worst if gap)
    return f"measured against the rules: {listed}"


def merged(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return documents of several backbones as one; the machine's conditions are the last one's."""
    joined: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for document in documents:
        runs |= document["conditions"]["runs"]
        joined |= document
    joined["conditions"] = {**joined["conditions"], "runs": runs}
    return joined
