"""Samples: small domains that need no download.

Rules of this room: a picture depends on (seed, part, index) alone, not on how many others are
drawn. Classes take turns, so the first pictures are balanced, however many. Only scikit-learn's
digits are read from disk.
"""

from toolchain.training.data.samples.drawing import DRAWN, SIDE, Sample, drawn_sample

__all__ = ["DRAWN", "SIDE", "Sample", "drawn_sample"]
