"""Names for the arrays that rooms hand to each other.

Rules of this file: types only. It imports numpy, so whoever needs no arrays leaves it alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
