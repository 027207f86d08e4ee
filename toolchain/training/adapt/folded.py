"""The two models that export links a patch from.

Rules of this file: export needs two models that differ only in the backbone's tensors and hold the
domain's slots alone. One has the frozen backbone. The other has a copy of it, with the domain's
overrides in place of the frozen tensors. Nothing here is trained, and the model that came in stays
as it is.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from toolchain.training.adapt.attached import OWN, AttachedModel


def slots_alone(model: AttachedModel) -> AttachedModel:
    """Return the frozen backbone with the slots of ``model`` alone, without its overrides."""
    return _with_slots(model, model.backbone)


def overrides_folded(model: AttachedModel) -> AttachedModel | None:
    """Return the model as slots on a changed copy of the backbone; None where nothing is changed.

    The copy holds the domain's tensors in place of the frozen ones, in evaluation mode.
    """
    if model.overrides is None:
        return None
    with torch.no_grad():
        overridden = model.overrides.values(model.backbone).items()
        values = {name: value.clone() for name, value in overridden}
    changed = copy.deepcopy(model.backbone)
    # The domain's own tensors alone; the others of the copy stay the backbone's.
    changed.load_state_dict(values, strict=False)
    return _with_slots(model, changed)


def _with_slots(model: AttachedModel, backbone: nn.Module) -> AttachedModel:
    twin = type(model)(
        backbone, model.anatomy, model.method, model.classes, model.options, slots_only=True
    )
    state = model.domain.state_dict()
    slots = {name: value for name, value in state.items() if not name.startswith(f"{OWN}.")}
    twin.domain.load_state_dict(slots)
    return twin
