"""A gated block's forward in training: decide first, run what is open, tell closed gates a little.

Rules of this file: it stands in for a block's own forward while a training forward runs
(``attached``), calls that forward for the rows whose gate is open, and joins (``rows``). It decides
nothing itself and owns no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolchain.training.adapt import rows
from toolchain.training.adapt.adaptors import BlockDomain
from toolchain.training.adapt.dryrun import block_input, first_tensor
from toolchain.training.lean.options import Precision

Decide = Callable[[Tensor], Tensor]
"""From gate logits ``[N, 1]`` to decisions that pass a gradient."""

Parting = Callable[[Tensor], rows.Rows]
"""From decisions ``[N, 1]`` to the rows that run and the others."""


@dataclass(eq=False)
class GatedForward:
    """The forward of one gated block, for one forward of the model.

    ``run``: the block's own forward. ``decide`` is told the gate's logits once. ``kept``: the
    precision in which what blocks changed waits. ``whole``: names of blocks that take or return
    more than one map and so run for the whole batch; found out here.
    """

    name: str
    part: BlockDomain
    run: Callable[..., Any]
    decide: Decide
    kept: Precision
    parting: Parting
    generator: torch.Generator | None
    whole: set[str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block returns, its map adapted."""
        x, part = block_input(args, kwargs), self.part
        assert x is not None
        assert part.gate is not None
        pooled = part.coarse(x)
        correction = part.adaptor(pooled)
        opened = self.decide(part.gate(pooled))
        chosen = self.parting(opened)
        ran = self._computed(x, chosen, args, kwargs)
        seen = torch.cat([chosen.run, ran.probed])
        with torch.no_grad():
            after = torch.cat([part.coarse(ran.y), part.coarse(ran.extra)])
            change = after - pooled.index_select(0, seen)
            weight = after.new_ones(len(seen))
            weight[len(chosen.run) :] = ran.weight
        wide = torch.promote_types(ran.y.dtype, ran.rest.dtype)  # autocast narrows what runs
        y, rest = ran.y.to(wide), ran.rest.to(wide)
        difference = rows.DecisionGradient(opened, change, seen, weight)
        result = rows.join(
            y, rest, correction, chosen, part.layout, difference=difference, kept=self.kept
        )
        return (result, *ran.output[1:]) if isinstance(ran.output, tuple) else result

    def _computed(
        self, x: Tensor, chosen: rows.Rows, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _Ran:
        """Run the block for the rows whose gate is open, and without gradient for the probed."""
        alone = len(args) == 1 and args[0] is x and not kwargs and self.name not in self.whole
        if not alone:
            return self._wholly(x, chosen, args, kwargs)
        some, rest = rows.part(x, chosen)
        probed = chosen.probes(self.generator)
        # Where nothing runs, one row tells what the block returns.
        looked = probed if len(probed) or len(some) else chosen.rest[:1]
        output: Any = None
        extra = x[:0]
        if len(looked):
            with torch.no_grad():
                output = self.run(rows.taken(x, looked))
                extra = _map(output)[: len(probed)]
        if len(some):
            output = self.run(some)
        if isinstance(output, tuple) and len(output) > 1:
            # It returns more than its map, which belongs to the whole batch.
            self.whole.add(self.name)
            return self._wholly(x, chosen, args, kwargs)
        y = _map(output) if len(some) else some
        return _Ran(output, y, rest, probed, extra, rows.PROBED)

    def _wholly(
        self, x: Tensor, chosen: rows.Rows, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _Ran:
        output = self.run(*args, **kwargs)
        y = _map(output)
        run, rest = (rows.taken(y, part) for part in (chosen.run, chosen.rest))
        return _Ran(output, run, rows.taken(x, chosen.rest), chosen.rest, rest.detach(), 1)


@dataclass(frozen=True, slots=True)
class _Ran:
    """What a block answered.

    ``y``: maps of open rows. ``rest``: the others' input. ``extra``: maps of the rows ``probed``,
    without gradient, each of which counts ``weight`` times.
    """

    output: Any
    y: Tensor
    rest: Tensor
    probed: Tensor
    extra: Tensor
    weight: int


def _map(output: object) -> Tensor:
    found = first_tensor(output)
    assert found is not None
    return found
