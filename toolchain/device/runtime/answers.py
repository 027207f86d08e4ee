"""What a runner says: values of a loaded domain, of a batch and of one picture.

Rules of this file: frozen values and the arithmetic between them; nothing runs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from toolchain.core.arrays import Bools, Floats
from toolchain.pictures.preprocess import Preprocessing


@dataclass(frozen=True, slots=True)
class Domain:
    """A loaded domain.

    ``release``: digest of its bundle's manifest. ``gates``: the blocks that have one, in order.
    ``slots_bytes``: what its tensors occupy. ``session``: number of the session that it runs on.
    ``seconds`` by step: verify, trial, session, selftest; steps that were not needed are left out.
    """

    name: str
    version: str
    release: str
    classes: tuple[str, ...]
    preprocess: Preprocessing
    gates: tuple[str, ...]
    slots_bytes: int
    session: int
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The answer to a batch of N pictures.

    ``logits``: float32 ``[N, classes]``; ``gates``: bool ``[N, G]`` in the order of
    :attr:`Domain.gates`, true where the gate was open and its block computed; ``release`` is the
    one that answered all of it; ``ms``: wall-clock time of the model, without preprocessing.
    """

    logits: Floats
    gates: Bools
    release: str
    ms: float


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The answer to one picture; ``ms`` is that of its whole batch, without preprocessing."""

    label: str
    index: int
    probability: float
    logits: Floats
    gates: Mapping[str, bool]
    domain: str
    release: str
    ms: float


def probabilities(logits: Floats) -> Floats:
    """Return the softmax over the last axis, float32 of the same shape."""
    # Without the largest, exp() of a large logit would overflow.
    shifted = logits - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    total: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return total


def predictions(outcome: Outcome, domain: Domain) -> tuple[Prediction, ...]:
    """Return an outcome picture by picture, with class names."""
    likely = probabilities(outcome.logits)
    best = outcome.logits.argmax(axis=1)
    return tuple(
        Prediction(
            label=domain.classes[index],
            index=int(index),
            probability=float(likely[row, index]),
            logits=outcome.logits[row],
            gates=dict(zip(domain.gates, map(bool, outcome.gates[row]), strict=True)),
            domain=domain.name,
            release=outcome.release,
            ms=outcome.ms,
        )
        for row, index in enumerate(best)
    )
