"""Samples: small domains that need no download.

Rules of this room: every picture is drawn from (seed, part, index) alone, so that it does not
depend on how many others are drawn; classes take turns, so that any prefix is balanced; nothing
is read from disk except scikit-learn's digits.
"""

from toolchain.training.data.samples.drawing import DRAWN, SIDE, Sample, drawn

__all__ = ["DRAWN", "SIDE", "Sample", "drawn"]
