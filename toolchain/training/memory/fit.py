"""What a training needs, and what a memory budget holds.

Rules of this file: answers come from ``analytic`` alone, so they exist before the first step and on
any machine. A *need* comes on top of the frozen weights and the batch of pictures, which are there
whatever is trained. It adds up what is kept, the maps under way (``analytic.Count``), parameters,
gradients and AdamW's moments as if all were there at once. So a need is rather too large; but it
does not know the scratch memory of kernels. The head's fit and the test, which come before and
after the steps, keep within the need of a step (``head``, ``loop.evaluation``), unless the head
alone takes more. This file never trains and never changes a model.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import get_args

from toolchain.core.errors import AttachError, MemoryBudgetError, TrainingError
from toolchain.core.timing import Notify
from toolchain.recipe import METHOD_OPTIONS, AdaptorOptions
from toolchain.training.adapt.attached import OWN, AttachedModel, domain_state
from toolchain.training.adapt.methods import REGISTRY
from toolchain.training.adapt.overrides import Selection
from toolchain.training.lean import Lean
from toolchain.training.lean.options import Keep
from toolchain.training.memory.analytic import count
from toolchain.training.memory.head import head_fit

LIMIT_BATCH = 65_536
_SPAN = 8  # of so many pictures bits fill whole bytes
_FLOAT = 4
_MOMENTS = 2  # AdamW keeps two floats per trained parameter
_FOLDED_WITH = {"running_mean": "bias", "running_var": "weight"}
_LARGER = 8  # the ratio to try where the map chooses its own: smaller grids on all but large maps
_PRECISIONS: tuple[Keep, ...] = get_args(Keep)  # the largest first


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a training needs beside frozen weights and pictures.

    ``stored`` for the backward pass, ``working`` for maps under way, ``optimiser`` for AdamW's
    moments, ``gradients`` and ``parameters`` of what is trained; ``trainable`` counts those.
    ``head`` is the least that fitting the head takes, before the first step. ``domain_bytes`` is
    what a further domain costs in storage and no part of the total.
    """

    stored: int
    working: int
    optimiser: int
    gradients: int
    parameters: int
    trainable: int
    head: int
    domain_bytes: int

    @property
    def total(self) -> int:
        """The most that is there at once: in a step, or while the head is fitted."""
        return max(self.step, self.head)

    @property
    def step(self) -> int:
        """All that a step takes at once."""
        return self.stored + self.working + self.optimiser + self.gradients + self.parameters


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to train, the largest ``batch`` that a budget holds with it (0: none), and its need.

    ``need`` is that of ``batch``, or of one picture where none is held.
    """

    method: str
    pool: int | None
    keep: Keep
    batch: int
    need: Need

    def __str__(self) -> str:
        keys = [] if self.pool is None else [f"adaptor.pool: {self.pool}"]
        if REGISTRY[self.method].lean and self.method != "head":
            keys.append(f"train.keep: {self.keep}")
        keys.append(f"train.batch: {max(1, self.batch)}")
        return f"{self.method} with {', '.join(keys)}"


def need(model: AttachedModel, batch: int) -> Need:
    """Return what a training of ``model``'s domain on ``batch`` pictures a step needs.

    Every gate counts as open. Raises TrainingError where that cannot be counted (``count``).
    """
    counted = count(model, batch)
    trainable = sum(p.numel() for p in model.domain.parameters() if p.requires_grad)
    return Need(
        stored=counted.stored.bytes,
        working=counted.working,
        optimiser=_MOMENTS * _FLOAT * trainable,
        gradients=_FLOAT * trainable,
        parameters=_FLOAT * trainable,
        trainable=trainable,
        head=head_fit(model.anatomy.features, model.classes).bytes,
        domain_bytes=domain_bytes(model),
    )


def domain_bytes(model: AttachedModel) -> int:
    """Return what a further domain like ``model``'s costs in storage: slots and patch, in bytes.

    This needs no export (decision 13). A norm is folded into the convolution before it, so its
    weight is a factor per channel and its bias a bias, and its statistics are part of both. Nobody
    looks up what stands before a norm. So the answer is 4 bytes a channel too much where the domain
    has a kernel or bias of its own that is folded with the norm's, and 8 bytes too few for a norm
    without a convolution before it.
    """
    slots = (t for name, t in domain_state(model).items() if not name.startswith(f"{OWN}."))
    own = dict(model.overrides.items()) if model.overrides is not None else {}
    stored = sum(v.deployed_bytes() for name, v in own.items() if not _is_folded(name, own))
    return stored + sum(t.numel() * t.element_size() for t in slots)


def _is_folded(name: str, own: Container[str]) -> bool:
    """Tell whether a statistic is stored with the weight or bias of its norm, or not at all."""
    norm, _, leaf = name.rpartition(".")
    return leaf == "num_batches_tracked" or f"{norm}.{_FOLDED_WITH.get(leaf)}" in own


def within(model: AttachedModel, batch: int, budget: int, *, needed: Need | None = None) -> Need:
    """Return :func:`need` where ``budget`` bytes hold it; ``needed`` saves counting it again.

    Raises MemoryBudgetError otherwise, with the best training that they hold as the fix.
    """
    needed = needed or need(model, batch)
    if needed.total <= budget:
        return needed
    methods = dict.fromkeys((model.method, "da3", "head"))
    best = fitting(model, budget, batch, methods=methods)[0]
    best = replace(best, batch=min(batch, best.batch))  # no more than was asked for
    raise MemoryBudgetError(
        f"training {model.method} with batch {batch} needs {mib(needed.total)} beside the weights, "
        f"expected at most {mib(budget)}",
        fix=f"train {best} in the recipe",
    )


def fitting(
    model: AttachedModel,
    budget: int,
    batch: int,
    *,
    methods: Iterable[str] = ("da3", "head"),
    notify: Notify = lambda _: None,
) -> list[Choice]:
    """Return the trainings that ``budget`` bytes hold, best first.

    It tries ``methods`` on the model's backbone, in the order of preference: with the model's pool
    ratio and larger ones, and with its precision of kept inputs and smaller ones, where a method
    has these. First come the trainings that hold ``batch`` pictures, as little changed as possible,
    then those with the largest batch; the head alone comes last. It leaves out methods that the
    backbone cannot take, and a training that holds no more pictures than a less changed one does.
    ``notify`` hears of each method as it is counted. Raises MemoryBudgetError when not even one
    picture fits, and names the smallest need.
    """
    tried: list[Choice] = []
    for method in methods:
        notify(f"count {method}")
        tried += _tried(model, budget, method)
    fits: list[Choice] = []
    for choice in tried:
        if choice.batch > max((c.batch for c in fits if c.method == choice.method), default=0):
            fits.append(choice)
    if not fits:
        least = min(tried, key=lambda choice: choice.need.total)
        raise MemoryBudgetError(
            f"expected a training within {mib(budget)} beside the weights, got none: the smallest "
            f"found, {least}, needs {mib(least.need.total)}",
            fix=f"give it {mib(least.need.total)}, or smaller pictures or a smaller backbone",
        )
    # Sorting is stable: what was tried first stays first among equals.
    return sorted(fits, key=lambda c: (c.method == "head", -min(c.batch, batch)))


def _tried(model: AttachedModel, budget: int, method: str) -> Iterator[Choice]:
    pools = _pools(model.options) if "pool" in METHOD_OPTIONS[method] else (None,)
    for keep in _precisions(model, method):
        for pool in pools:
            try:
                variant = _variant(model, method, pool, keep)
            except AttachError:
                continue
            yield _choice(variant, pool, keep, budget)


def _precisions(model: AttachedModel, method: str) -> tuple[Keep, ...]:
    """Return the model's precision of kept inputs and smaller ones, where the method has them."""
    if method == "head" or not REGISTRY[method].lean:
        return ("fp32",)
    present = model.lean.keep if model.lean is not None else "fp32"
    return _PRECISIONS[_PRECISIONS.index(present) :]


def _pools(options: AdaptorOptions) -> tuple[int | None, ...]:
    """Return the pool ratio, a larger one, and global pooling, the largest of all."""
    if options.pool == 0:
        return (0,)
    larger = _LARGER if options.pool is None else min(64, 2 * options.pool)
    return tuple(dict.fromkeys((options.pool, larger, 0)))


def _variant(model: AttachedModel, method: str, pool: int | None, keep: Keep) -> AttachedModel:
    """Return another way to train on the same backbone."""
    options = model.options if pool is None else replace(model.options, pool=pool)
    return AttachedModel(
        model.backbone,
        model.anatomy,
        method,
        model.classes,
        options,
        lean=Lean(keep=keep, smooth=REGISTRY[method].smooth),
        selection=_selection(model, method, options),
    )


def _selection(model: AttachedModel, method: str, options: AdaptorOptions) -> Selection:
    by_size = REGISTRY[method].by_size
    if method == model.method or by_size is None:
        return model.selection
    return by_size(model.backbone, model.anatomy, options)


def _choice(model: AttachedModel, pool: int | None, keep: Keep, budget: int) -> Choice:
    straight = _Straight(need(model, _SPAN), need(model, 2 * _SPAN))
    batch = straight.largest(budget)
    return Choice(model.method, pool, keep, batch, straight.at(max(1, batch)))


@dataclass(frozen=True, slots=True)
class _Straight:
    """Needs of any batch from two of them.

    Maps grow with the batch and kernels do not, so all lie on a straight line, but for the bits of
    a layer, which are kept in whole bytes: that is less than a byte a layer.
    """

    span: Need
    twice: Need

    def at(self, batch: int) -> Need:
        """Return the need of a batch, rounded up."""

        def on_line(span: int, twice: int) -> int:
            return 2 * span - twice - (span - twice) * batch // _SPAN

        return replace(
            self.span,
            stored=on_line(self.span.stored, self.twice.stored),
            working=on_line(self.span.working, self.twice.working),
        )

    def largest(self, budget: int) -> int:
        """Return the largest batch that ``budget`` bytes hold, 0 for none."""
        if budget < self.span.head:
            return 0
        free, growth = budget - self.at(0).step, self.twice.step - self.span.step
        batch = max(0, min(LIMIT_BATCH, free * _SPAN // max(1, growth)))
        # Rounding may put the line a few bytes too high.
        while batch and self.at(batch).total > budget:
            batch -= 1
        return batch


def line(needed: Need, batch: int, method: str) -> str:
    """Return the one line that tells what a training will need, before it starts."""
    return (
        f"{method}, batch {batch}: keeps {mib(needed.stored)} for the backward pass, "
        f"{mib(needed.optimiser)} for the optimiser of {needed.trainable} parameters; "
        f"at most {mib(needed.total)} beside weights and pictures; the domain takes "
        f"{mib(needed.domain_bytes)} of storage"
    )


def need_and_line(model: AttachedModel, batch: int) -> tuple[Need | None, str]:
    """Return :func:`need` with the :func:`line` that tells it.

    For a model whose need cannot be told before it trains: None, and why.
    """
    try:
        needed = need(model, batch)
    except TrainingError as err:
        return None, f"{model.method}, batch {batch}: {err.message}"
    return needed, line(needed, batch, model.method)


def mib(count: int) -> str:
    """Return a number of bytes in MiB, in KiB where that would be less than one."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
