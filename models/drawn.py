"""How the untrained nets of mobile convolutions begin."""

from __future__ import annotations

from torch import nn


def initialise(net: nn.Module) -> None:
    """Draw convolutions as He et al. 2015b (fan-out) and the classifier from N(0, 0.01)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
