"""Take the reference from PyTorch, and choose pictures that bring each gate into both states.

Rules of this file: fp32, eager, evaluation mode, and deterministic: the search looks at a number of
pictures fixed by the backbone's cost, never at a clock. Pictures with a gate so close to its
threshold that rounding could turn it are left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from toolchain.bundle.golden import FORCE, PROBES, Golden, probe, shifted
from toolchain.export.check import drawn
from toolchain.pictures.preprocess import Preprocessing, normalise
from toolchain.training.adapt.attached import AttachedModel, Trace, arrays, domain_state
from toolchain.training.adapt.checkpoint import Metrics
from toolchain.training.data.splits import Split

# A bound on work and not on time, so that every machine searches the same pictures.
SEARCH_FLOPS = 60_000_000_000
SEARCH_RANGE = (16, 1024)
MARGIN = 1e-3
# Pixels of one batch in PyTorch: larger ones fall out of the caches and take twice the time.
BATCH_PIXELS = 8 * 224 * 224


@dataclass(frozen=True, slots=True)
class ReferenceCases:
    """Golden cases and how they were found.

    ``golden``: covers both states of every gate. ``others``: further natural pictures that fill a
    batch. ``searched``: pictures looked at; ``ambiguous``: those left out for a gate too close to
    its threshold. ``drawn``: whether the golden pictures are drawn, and none of the domain's data.
    """

    golden: Golden
    others: Golden
    searched: int
    ambiguous: int
    drawn: bool = False


def choose(
    model: AttachedModel,
    split: Split,
    preprocess: Preprocessing,
    *,
    count: int,
    seed: int | None = None,
    batch: int = 16,
) -> ReferenceCases:
    """Search for golden cases: up to ``count`` natural ones, plus up to two forced.

    Without a ``seed`` they are pictures of ``split``. With one they are drawn from it, and
    ``split`` gives the others only.
    """
    low, high = SEARCH_RANGE
    most = max(low, min(high, SEARCH_FLOPS // max(1, model.anatomy.flops)))
    own = observe(model, preprocess, _spread(split, most if seed is None else 2 * batch))
    searched, rest = own, _usable(own)
    usable = rest
    if seed is not None:
        pictures = drawn.draw(preprocess, min(most, drawn.MOST), seed)
        searched = observe(model, preprocess, pictures)
        usable = _decided_first(searched, _usable(searched))
    picked = usable[_cover(searched.gates[usable] >= 0, min(count, len(usable)))]
    if seed is None:
        rest = np.setdiff1d(rest, picked)
    golden = with_forced(model, preprocess, searched.take(picked))
    others = own.take(rest[: max(0, batch - len(picked))])
    ambiguous = len(searched) - int(_clear(searched).sum())
    return ReferenceCases(golden, others, len(searched), ambiguous, drawn=seed is not None)


def _spread(split: Split, most: int) -> npt.NDArray[np.uint8]:
    rows = np.linspace(0, len(split) - 1, min(len(split), most)).round().astype(np.int64)
    return split.batch(np.unique(rows))[0]


def _clear(cases: Golden) -> npt.NDArray[np.bool_]:
    """Return which cases have every gate away from its threshold, ``[K]``."""
    return np.asarray((np.abs(cases.gates) >= MARGIN).all(axis=1))


def _usable(cases: Golden) -> npt.NDArray[np.int64]:
    """Return the clear cases, in order."""
    clear = np.flatnonzero(_clear(cases))
    # Nobody could check a bundle without cases, so doubtful ones are better than none.
    return clear if len(clear) else np.arange(len(cases))


def _decided_first(cases: Golden, usable: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return ``usable`` with the half first whose best class stands out most, else in order.

    A drawn picture is of no class. Between two classes that are level, the rounding of a board
    would decide, and its self-test would fail for nothing.
    """
    ordered = np.sort(cases.logits[usable], axis=1)
    lead = ordered[:, -1] - ordered[:, -2:].min(axis=1)
    return usable[np.argsort(lead < np.median(lead), kind="stable")]


def joint_rates(metrics: Metrics, natural: Golden) -> dict[str, float]:
    """Return how often each gate is open, over training pictures and natural cases together.

    A static graph leaves out what is never run, and it must answer the cases as PyTorch does. So a
    gate that one case finds in another state than all training pictures did is not resolved: the
    test pictures can keep a gate, and never remove one. Rates that training took from the test
    split (format 1) stay as they are.
    """
    if not metrics.gate_pictures:
        return dict(metrics.gate_rates)
    opened = dict(zip(natural.gate_sites, (natural.gates >= 0).sum(axis=0).tolist(), strict=True))
    total = metrics.gate_pictures + len(natural)
    return {
        site: (rate * metrics.gate_pictures + opened[site]) / total
        for site, rate in metrics.gate_rates.items()
    }


def _gates(trace: Trace, batch: int) -> npt.NDArray[np.float32]:
    if not trace.gates:
        return np.zeros((batch, 0), np.float32)
    return torch.cat(list(trace.gates.values()), dim=1).numpy()


def _cover(opened: npt.NDArray[np.bool_], count: int) -> list[int]:
    """Pick rows greedily until every reachable state of every gate is seen; fill up in order."""
    states = np.concatenate([opened, ~opened], axis=1)
    uncovered = states.any(axis=0)
    picked: list[int] = []
    while len(picked) < count:
        # Greedy: take the row that shows most new states. Without any, argmax gives the first row
        # left.
        gain = (states & uncovered).sum(axis=1)
        gain[picked] = -1
        best = int(gain.argmax())
        if gain[best] < 0:
            break
        picked.append(best)
        uncovered &= ~states[best]
    return picked


def with_forced(model: AttachedModel, preprocess: Preprocessing, natural: Golden) -> Golden:
    """Add a case that opens all gates that no case opens, and likewise one that closes gates."""
    opened = natural.gates >= 0
    parts = [natural]
    for missing, amount in ((~opened.any(axis=0), FORCE), ((opened).all(axis=0), -FORCE)):
        if missing.any():
            shift = np.where(missing, np.float32(amount), np.float32(0))
            parts.append(observe(model, preprocess, natural.images([0]), shift))
    return join(parts)


def join(parts: list[Golden]) -> Golden:
    """Put cases of one model together."""
    names = ("shifts", "logits", "gates", "probes")
    merged = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    pixels = np.concatenate([part.images(slice(None)) for part in parts])
    return Golden(pixels, **merged, gate_sites=parts[0].gate_sites, sites=parts[0].sites)


def observe(
    model: AttachedModel,
    preprocess: Preprocessing,
    pixels: npt.NDArray[np.uint8],
    shift: npt.NDArray[np.float32] | None = None,
) -> Golden:
    """Return what PyTorch says of pictures uint8 ``[K, S, S, 3]``, gates shifted by ``[G]``."""
    # Copies: arrays() shares memory with the parameters that are about to change.
    before = {name: value.copy() for name, value in arrays(domain_state(model)).items()}
    gate_sites = tuple(name for name in model.sites if f"{name}.gate.bias" in before)
    amount = np.zeros(len(gate_sites), np.float32) if shift is None else shift
    _put(model, shifted(before, gate_sites, amount))
    size = max(1, BATCH_PIXELS // (pixels.shape[1] * pixels.shape[2]))
    batches = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    try:
        answers = [_run(model, normalise(preprocess, batch)) for batch in batches]
    finally:
        _put(model, before)
    logits, gates, probes = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    shifts = np.tile(amount, (len(pixels), 1))
    return Golden(pixels, shifts, logits, gates, probes, gate_sites, tuple(model.sites))


@torch.no_grad()
def _run(
    model: AttachedModel, images: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], ...]:
    """Return logits, gate logits and probes of one batch."""
    model.train(False)
    trace = model.trace(torch.from_numpy(images))
    assert trace.logits is not None
    none = np.zeros((len(images), 0, PROBES), np.float32)
    blocks = [probe(trace.results[name].numpy()) for name in model.sites]
    probes = np.stack(blocks, axis=1) if blocks else none
    return trace.logits.numpy(), _gates(trace, len(images)), probes


def _put(model: AttachedModel, slots: dict[str, npt.NDArray[np.float32]]) -> None:
    model.domain.load_state_dict(
        {name: torch.from_numpy(value) for name, value in slots.items()}, strict=False
    )
