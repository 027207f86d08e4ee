"""How learning rate and gate noise move over a training.

Rules of this file: pure functions of a training's progress, so that a resumed one needs no state.
"""

from __future__ import annotations

import math

# WARM_UP and NOISE_ENDS are shares of all steps.
WARM_UP = 0.15
NOISE_AT_START = 0.5
NOISE_ENDS = 0.6
GATE_LR_FACTOR = 10.0
"""A gate's logit starts at 2 and must cross zero within a few hundred steps of Adam."""


def lr_factor(done: float) -> float:
    """Return the factor of the peak learning rate at the share ``done`` in 0..1 of all steps.

    One cycle: a linear rise, then half a cosine down to zero (Smith and Topin 2018; the cosine is
    Loshchilov and Hutter's, ICLR 2017).
    """
    if done < WARM_UP:
        # Without the 1e-3 the first step would learn nothing.
        return (done + 1e-3) / (WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def noise_scale(done: float) -> float:
    """Return the strength of the gates' noise: half at the start, none for the last part.

    Evaluation has no noise. A gate at logit 0.4 is open for six samples of ten while noise lasts,
    and for all of them afterwards. So the last part trains without, and meets the budget there.
    """
    return NOISE_AT_START * max(0.0, 1 - done / NOISE_ENDS)
