"""Chirps: time-frequency pictures of eight kinds of signal.

Rules of this file: it synthesises a signal sample by sample (the phase is the sum of the
frequency), buries it in noise, and draws its windowed Fourier transform: x is time, y is frequency
with high on top. A kind is how the frequency moves. Where, how fast and how loud is random.
Frequencies are in cycles per sample.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from toolchain.pictures.decode import Pixels
from toolchain.training.data.samples.drawing import SIDE, Rng, Sample

# So many samples give SIDE frequencies beside the mean.
WINDOW = 2 * SIDE
HOP = 16
LENGTH = WINDOW + HOP * (SIDE - 1)

Wave = npt.NDArray[np.float64]
_TIME = np.linspace(0.0, 1.0, LENGTH)
_STARTS = np.arange(SIDE) * HOP
_FRAMES = _STARTS[:, None] + np.arange(WINDOW)[None, :]
_HANN = np.hanning(WINDOW)
# From silence to loud: five stops of a palette, red, green, blue.
_STOPS = np.linspace(0.0, 1.0, 5)
_PALETTE = np.array([[8, 6, 40], [70, 18, 110], [190, 50, 90], [245, 150, 40], [252, 250, 190]])


def _rising(rng: Rng) -> Wave:
    low = rng.uniform(0.04, 0.28)
    high = low + rng.uniform(0.08, 0.17)
    return np.asarray(low + (high - low) * _TIME ** rng.uniform(0.6, 1.6))


def _falling(rng: Rng) -> Wave:
    return _rising(rng)[::-1]


def _valley(rng: Rng) -> Wave:
    low = rng.uniform(0.04, 0.28)
    high = low + rng.uniform(0.08, 0.17)
    turn = rng.uniform(0.3, 0.7)
    return np.asarray(np.interp(_TIME, [0, turn, 1], [high, low, high]))


def _peak(rng: Rng) -> Wave:
    # A valley upside down, still below half a cycle per sample, the highest frequency there is.
    return 0.49 - _valley(rng)


def _steady(rng: Rng) -> Wave:
    return np.full(LENGTH, rng.uniform(0.06, 0.43))


def _wobble(rng: Rng) -> Wave:
    centre, swing = rng.uniform(0.12, 0.37), rng.uniform(0.04, 0.09)
    turns = rng.uniform(2.0, 4.5)
    return np.asarray(centre + swing * np.sin(2 * np.pi * (turns * _TIME + rng.random())))


def _steps(rng: Rng) -> Wave:
    jumps = int(rng.integers(4, 7))
    base = rng.uniform(0.06, 0.26)
    levels = base + rng.uniform(0.08, 0.17) * (np.arange(jumps) % 2)
    return np.asarray(levels[np.minimum((_TIME * jumps).astype(int), jumps - 1)])


KINDS: dict[str, Callable[[Rng], Wave]] = {
    "rising": _rising,
    "falling": _falling,
    "valley": _valley,
    "peak": _peak,
    "steady": _steady,
    "pair": _steady,
    "wobble": _wobble,
    "steps": _steps,
}


def draw_one(label: int, rng: Rng) -> Pixels:
    """Return the picture of a signal of the kind ``label``, uint8 [32, 32, 3]."""
    kind = tuple(KINDS)[label]
    frequency = KINDS[kind](rng)
    signal = _tone(frequency, rng)
    if kind == "pair":
        gap = rng.uniform(0.08, 0.22)
        # The second tone lies above the first, or below where it would leave the picture.
        other = frequency + (gap if frequency[0] + gap < 0.45 else -gap)
        signal = signal + _tone(np.abs(other), rng)
    noise = rng.normal(0.0, rng.uniform(0.35, 1.5), LENGTH)
    return _picture(signal + noise + _clicks(rng))


def _tone(frequency: Wave, rng: Rng) -> Wave:
    """Return a signal of this instantaneous frequency; its loudness changes slowly."""
    phase = 2 * np.pi * (np.cumsum(frequency) + rng.random())
    loudness = 1.0 + 0.35 * np.sin(2 * np.pi * (rng.uniform(0.5, 3) * _TIME + rng.random()))
    return np.asarray(loudness * np.sin(phase))


def _clicks(rng: Rng) -> Wave:
    """Return up to two short clicks, which cross all frequencies."""
    signal = np.zeros(LENGTH)
    for _ in range(int(rng.integers(0, 3))):
        signal[int(rng.integers(0, LENGTH))] = rng.uniform(4, 10)
    return signal


def _picture(signal: Wave) -> Pixels:
    # Bin 0 is the mean of the signal, which says nothing.
    spectrum = np.abs(np.fft.rfft(signal[_FRAMES] * _HANN, axis=1))[:, 1 : SIDE + 1]
    level = np.log1p(spectrum).T[::-1]
    level = np.clip((level - 0.6) / (level.max() - 0.6), 0.0, 1.0)
    colour = [np.interp(level, _STOPS, _PALETTE[:, channel]) for channel in range(3)]
    return np.asarray(np.rint(np.stack(colour, axis=-1)), dtype=np.uint8)


SAMPLE = Sample(tuple(KINDS), draw_one)
