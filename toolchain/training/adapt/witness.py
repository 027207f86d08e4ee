"""What a frozen backbone answers to drawn noise: a witness of its code, beside its weights' digest.

Rules of this file: a few numbers, from the backbone alone, without any domain. Equal weights do not
make equal nets: whoever edits a forward changes every figure of a domain that was trained before.
The digest of a graph would name the version of PyTorch, too; answers name what is computed, and
allow for processors that round otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.training.adapt.dryrun import output_tensor

PLACES = 32
"""Features that are noted, evenly spread."""
TOLERANCE = 0.01
"""Of the largest feature. Processors and GPUs differ by a tenth of that at most."""
_SEED = 20220614


def witness(backbone: nn.Module, input_shape: Sequence[int], head: str | None) -> tuple[float, ...]:
    """Return ``PLACES`` of the features (fewer if it has fewer) of one picture of noise.

    ``input_shape``: channels, height, width. ``head``: the classifier, whose input are the
    features; None if the backbone returns them.
    """
    noise = np.random.default_rng(_SEED).standard_normal((1, *input_shape), np.float32)
    features: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        features.append(args[0])

    device = next((tensor.device for tensor in backbone.parameters()), torch.device("cpu"))
    backbone.eval()
    with torch.no_grad():
        if head is None:
            output = output_tensor(backbone(torch.from_numpy(noise).to(device)))
            assert output is not None
            features.append(output)
        else:
            with backbone.get_submodule(head).register_forward_pre_hook(note):
                backbone(torch.from_numpy(noise).to(device))
    flat = features[-1].detach().float().cpu().numpy().ravel()
    places = np.linspace(0, len(flat) - 1, min(PLACES, len(flat))).round().astype(np.int64)
    return tuple(float(f"{value:.6g}") for value in np.nan_to_num(flat[places]))


def difference(before: Sequence[float], now: Sequence[float]) -> float:
    """Return the largest difference of two witnesses, relative to the largest feature before."""
    if len(before) != len(now):
        return 1.0
    old, new = np.asarray(before), np.asarray(now)
    return float(np.abs(old - new).max(initial=0) / max(np.abs(old).max(initial=0), 1e-12))
