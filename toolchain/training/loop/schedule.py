"""How learning rate and budget move over a training.

Rules of this file: pure functions of a training's progress, so that a resumed one needs no state.
"""

from __future__ import annotations

import math

# All three are shares of all steps.
WARM_UP = 0.15
OPEN_UNTIL = 0.3
TIGHT_FROM = 0.6
GATE_LR_FACTOR = 5.0
"""A gate that turns faster ends open, or closed, for every picture; a slower one is too late."""


def lr_factor(done: float) -> float:
    """Return the factor of the peak learning rate at the share ``done`` in 0..1 of all steps.

    One cycle: a linear rise, then half a cosine down to zero (Smith and Topin 2018; the cosine is
    Loshchilov and Hutter's, ICLR 2017).
    """
    if done < WARM_UP:
        # Without the 1e-3 the first step would learn nothing.
        return (done + 1e-3) / (WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def budget_at(done: float, budget: float) -> float | None:
    """Return the share of FLOPs that the loss pulls to at the share ``done`` of all steps.

    None: every gate is open. A gate that closes at once costs what the adaptors have not yet
    learnt. So they learn first, the budget then tightens from 1, and the last part meets it.
    """
    if done < OPEN_UNTIL:
        return None
    if done >= TIGHT_FROM:
        return budget
    return 1 - (1 - budget) * (done - OPEN_UNTIL) / (TIGHT_FROM - OPEN_UNTIL)
