"""What lean layers may approximate, chosen by the user and never on their own.

Rules of this file: values only, no torch. The defaults approximate nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from toolchain.core.errors import AttachError

Precision = Literal["fp32", "half", "int8"]
Smooth = Literal["exact", "mask"]


@dataclass(frozen=True, slots=True)
class Lean:
    """How much is kept.

    ``keep``: how the inputs of trainable layers, and of frozen GroupNorm and LayerNorm, are kept
    (error bounds: ``kept.error_bound``). ``fp32`` keeps them as they are. ``smooth``: what h-swish,
    SiLU and GELU keep: ``exact`` their input, as stock torch does and no less; ``mask`` one bit per
    element, with MobileTL's binary mask for a derivative (Chiang et al., AAAI 2023).

    Raises AttachError for any other value.
    """

    keep: Precision = "fp32"
    smooth: Smooth = "exact"

    def __post_init__(self) -> None:
        for name, known in (("keep", get_args(Precision)), ("smooth", get_args(Smooth))):
            value = getattr(self, name)
            if value not in known:
                raise AttachError(
                    f"lean option {name!r}: expected one of {', '.join(known)}, got {value!r}",
                    fix=f"use {name}={known[0]!r}, which is exact",
                )
