"""A gated block's forward in training: decide first, run open rows, probe a few closed ones.

Rules of this file: it stands in for a block's own forward while a training forward runs
(``attached``). It calls the block's forward for the rows whose gate is open, and joins all rows
again (``rows``). It decides nothing itself and owns no tensors.
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
from toolchain.training.lean.options import Keep

Decide = Callable[[Tensor], Tensor]
"""From gate logits ``[N, 1]`` to decisions that pass a gradient."""

RowsOf = Callable[[Tensor], rows.Rows]
"""From decisions ``[N, 1]`` to the open rows and the closed ones."""


@dataclass(eq=False)
class GatedForward:
    """The forward of one gated block, for one forward of the model.

    ``run``: the block's own forward. ``decide`` is called once with the gate's logits.
    ``precision``: that in which the blocks' changes wait for the backward pass. ``whole``: names of
    blocks that take or return more than one map and so run for the whole batch; this class adds to
    it what it finds.
    """

    name: str
    domain: BlockDomain
    run: Callable[..., Any]
    decide: Decide
    precision: Keep
    rows_of: RowsOf
    generator: torch.Generator | None
    whole: set[str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block returns, its map adapted."""
        x, domain = block_input(args, kwargs), self.domain
        assert x is not None
        assert domain.gate is not None
        pooled = domain.coarse(x)
        correction = domain.adaptor(pooled)
        decision = self.decide(domain.gate(pooled))
        batch = self.rows_of(decision)
        outcome = self._run_rows(x, batch, args, kwargs)
        ran = torch.cat([batch.opened, outcome.probed])
        with torch.no_grad():
            # The change is a constant in the decision's gradient. A graph through it would keep the
            # block's whole map.
            after = torch.cat([domain.coarse(outcome.opened), domain.coarse(outcome.probes)])
            change = after - pooled.index_select(0, ran)
            weight = after.new_ones(len(ran))
            weight[len(batch.opened) :] = outcome.weight
        # Autocast narrows what runs and leaves what does not.
        wide = torch.promote_types(outcome.opened.dtype, outcome.closed.dtype)
        result = rows.join(
            outcome.opened.to(wide),
            outcome.closed.to(wide),
            correction,
            batch,
            domain.layout,
            gradient=rows.DecisionGradient(decision, change, ran, weight),
            precision=self.precision,
        )
        output = outcome.output
        return (result, *output[1:]) if isinstance(output, tuple) else result

    def _run_rows(
        self, x: Tensor, batch: rows.Rows, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _BlockOutcome:
        """Run the block for the open rows, and without gradient for the probes."""
        # Further arguments (a mask, positions) belong to the whole batch, and nobody knows how to
        # take rows of them.
        alone = len(args) == 1 and args[0] is x and not kwargs and self.name not in self.whole
        if not alone:
            return self._run_whole(x, batch, args, kwargs)
        opened, closed = rows.split_rows(x, batch)
        probed = batch.probes(self.generator)
        # Where nothing else runs, one row has to: only the block knows what it returns.
        tried = probed if len(probed) or len(opened) else batch.closed[:1]
        output: Any = None
        probes = x[:0]
        if len(tried):
            with torch.no_grad():
                output = self.run(rows.take_rows(x, tried))
                probes = _map(output)[: len(probed)]
        if len(opened):
            output = self.run(opened)
        if isinstance(output, tuple) and len(output) > 1:
            # It returns more than its map, and the rest belongs to the whole batch.
            self.whole.add(self.name)
            return self._run_whole(x, batch, args, kwargs)
        return _BlockOutcome(
            output=output,
            # A gated block keeps its shape, so an empty input stands for an empty output.
            opened=_map(output) if len(opened) else opened,
            closed=closed,
            probed=probed,
            probes=probes,
            weight=rows.PROBED,
        )

    def _run_whole(
        self, x: Tensor, batch: rows.Rows, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _BlockOutcome:
        """Run the block for the whole batch; every closed row is then a probe that counts once."""
        output = self.run(*args, **kwargs)
        y = _map(output)
        opened, probes = (rows.take_rows(y, part) for part in (batch.opened, batch.closed))
        return _BlockOutcome(
            output=output,
            opened=opened,
            closed=rows.take_rows(x, batch.closed),
            probed=batch.closed,
            probes=probes.detach(),
            weight=1,
        )


@dataclass(frozen=True, slots=True)
class _BlockOutcome:
    """What a block returned.

    ``opened``: output maps of the open rows. ``closed``: input maps of the closed rows. ``probes``:
    output maps of the rows ``probed``, without gradient; each of them counts ``weight`` times.
    """

    output: Any
    opened: Tensor
    closed: Tensor
    probed: Tensor
    probes: Tensor
    weight: int


def _map(output: object) -> Tensor:
    y = first_tensor(output)
    assert y is not None
    return y
