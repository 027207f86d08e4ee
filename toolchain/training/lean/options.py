"""What lean layers may approximate. The user chooses it; a layer never does by itself.

Rules of this file: values only, no torch. The defaults approximate nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from toolchain.core.errors import AttachError

Keep = Literal["fp32", "half", "int8"]
Smooth = Literal["exact", "mask"]


@dataclass(frozen=True, slots=True)
class Lean:
    """How much layers keep for the backward pass.

    ``keep``: the precision in which the inputs of trainable layers wait, and those of frozen
    GroupNorm and LayerNorm (error bounds: ``compression.error_bound``). ``fp32`` keeps them as they
    are. ``smooth``: what h-swish, SiLU and GELU keep. ``exact`` keeps their input, as stock torch
    does and no less. ``mask`` keeps one bit per element, and MobileTL's binary mask stands for the
    derivative (Chiang et al., AAAI 2023).

    Raises AttachError for any other value.
    """

    keep: Keep = "fp32"
    smooth: Smooth = "exact"

    def __post_init__(self) -> None:
        for name, known in (("keep", get_args(Keep)), ("smooth", get_args(Smooth))):
            value = getattr(self, name)
            if value not in known:
                raise AttachError(
                    f"lean option {name!r}: expected one of {', '.join(known)}, got {value!r}",
                    fix=f"use {name}={known[0]!r}, which is exact",
                )
