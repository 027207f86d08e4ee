"""Where a training computes, and in what precision.

Rules of this file: a device that is not there is refused before anything is read. Weights, their
gradients and the optimiser stay float32; ``mixed`` computes the layers in between in bfloat16,
whose range is float32's, so that no loss needs scaling (Kalamkar et al., 2019). torch is imported
where a device is looked for, so that one can be named without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from toolchain.core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from toolchain.training.adapt.attached import AttachedModel

Arithmetic = Literal["fp32", "mixed"]


@dataclass(frozen=True, slots=True)
class Device:
    """A device of PyTorch by its name, such as ``cpu``, ``cuda`` or ``cuda:1``."""

    name: str = "cpu"
    precision: Arithmetic = "fp32"

    def __post_init__(self) -> None:
        """Refuse another name."""
        kind, _, number = self.name.partition(":")
        if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
            raise UsageError(
                f"expected the device cpu, cuda or cuda:N, got {self.name!r}",
                fix="name one of them",
            )

    def require(self) -> None:
        """Raise UsageError where the device is missing or cannot compute in the precision."""
        kind, _, number = self.name.partition(":")
        if kind == "cpu":
            return
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise UsageError(
                f"expected the device {self.name}, got {count} GPUs that PyTorch can use",
                fix="install a build of PyTorch for your driver, or train with --device cpu",
            )
        if self.precision == "mixed" and not torch.cuda.is_bf16_supported():
            raise UsageError(
                f"expected a GPU that computes in bfloat16 for mixed precision, got "
                f"{torch.cuda.get_device_name(self.name)}",
                fix="train with --precision fp32",
            )

    def arithmetic(self) -> AbstractContextManager[object]:
        """Return the context in which a forward pass computes."""
        if self.precision == "fp32":
            return nullcontext()
        import torch

        return torch.autocast(self.name.partition(":")[0], torch.bfloat16)


CPU = Device()


@contextmanager
def placed(model: AttachedModel, device: Device) -> Iterator[None]:
    """Have the model on ``device`` inside the block of code, and back where it was after it."""
    before = device_of(model)
    model.to(device.name)
    try:
        yield
    finally:
        model.to(before)


def device_of(model: AttachedModel) -> torch.device:
    """Return where the model's tensors are."""
    from toolchain.training.adapt.attached import HEAD

    return model.domain.get_parameter(f"{HEAD}.weight").device
