"""What autograd keeps of one forward, by module.

Rules of this file: it runs the forward that it is given and counts; no shape is interpreted.
Saved-tensor hooks see every tensor that a function keeps for the backward pass. A storage counts
once and whole, since a view keeps all of its storage. Parameters and buffers are there anyway and
do not count; tensors that are made from them do (a masked copy of a weight). The batch of pictures
and its labels do not count either: the loader holds them, whatever the method.

It does not measure the peak of a step and does not run it backward: see ``memory.measured``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

HOW_KEPT = (
    "saved-tensor hooks; unique storages counted whole; parameters, buffers, pictures and labels "
    "left out"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes kept for the backward pass, in all and by module (``layer1.0.relu``, ``block03...``).

    What the domain has in place of backbone tensors stands under ``own.``, what is kept outside of
    any module (the loss) under an empty name. ``stock`` names the functions that have no lean form
    and what they keep in layers of the backbone; only ``memory.analytic`` fills it in.
    """

    bytes: int
    by_layer: Mapping[str, int]
    stock: Mapping[str, int] = field(default_factory=dict)

    def largest(self, count: int) -> list[tuple[str, int]]:
        """Return the ``count`` layers that keep the most, largest first."""
        return sorted(self.by_layer.items(), key=lambda item: -item[1])[:count]


Booking = Callable[[str, int], None]
"""Is called with a module's name and the bytes that it keeps, each storage once."""


def stored(
    model: nn.Module,
    step: Callable[[], Tensor],
    *,
    ignored: Iterable[Tensor] = (),
    notify: Booking = lambda _name, _bytes: None,
) -> Stored:
    """Run ``step``, a forward of ``model`` with its loss, and count what is kept for its backward.

    ``ignored``: tensors that are there anyway, such as pictures ``[N, C, H, W]`` and labels
    ``[N]``. ``step`` returns the loss; nothing is run backward. ``notify`` is called while it runs.
    """
    ledger = Ledger()
    ledger.ignore(*model.parameters(), *model.buffers(), *ignored)

    def pack(tensor: Tensor) -> Tensor:
        notify(stack.name, ledger.count(tensor, stack.name))
        return tensor

    with named(model) as stack, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = step()
    result = ledger.stored()
    del loss
    return result


class Ledger:
    """Storages counted once each, by the module that kept them first."""

    def __init__(self) -> None:
        self._addresses: set[int] = set()
        self._alive: list[torch.UntypedStorage] = []  # an address may not be used again meanwhile
        self._by_layer: dict[str, int] = {}

    def ignore(self, *tensors: Tensor) -> None:
        """Leave out what is there anyway."""
        self._addresses |= {address(tensor) for tensor in tensors}
        self._alive += [tensor.untyped_storage() for tensor in tensors]

    def count(self, tensor: Tensor, name: str) -> int:
        """Count a tensor's storage under ``name`` and return the bytes that are new."""
        storage, place = tensor.untyped_storage(), address(tensor)
        if place in self._addresses:
            return 0
        self._addresses.add(place)
        self._alive.append(storage)
        size = storage.nbytes()
        if size:
            self._by_layer[name] = self._by_layer.get(name, 0) + size
        return size

    def stored(self) -> Stored:
        """Return what was counted."""
        by_layer = dict(self._by_layer)
        return Stored(sum(by_layer.values()), by_layer)


def address(tensor: Tensor) -> int:
    """Return what tells a tensor's storage from all others that are alive."""
    # The address of the storage object: data_ptr() is 0 for every tensor without values (meta).
    return int(tensor.untyped_storage()._cdata)


class Stack:
    """The modules that are running, innermost last."""

    def __init__(self) -> None:
        self._names: list[str] = []

    @property
    def name(self) -> str:
        """The innermost module's name, empty outside of all."""
        return self._names[-1] if self._names else ""

    def push(self, name: str) -> None:
        """Enter a module."""
        self._names.append(name)

    def pop(self) -> None:
        """Leave it."""
        self._names.pop()


@contextmanager
def named(model: nn.Module) -> Iterator[Stack]:
    """Follow which module of ``model`` runs; names come without ``backbone.``, ``domain.``."""
    stack = Stack()
    handles = []
    for name, module in model.named_modules():
        short = name.removeprefix("backbone.").removeprefix("domain.")
        short = "" if short in ("backbone", "domain") else short

        def enter(_: nn.Module, __: object, short: str = short) -> None:
            stack.push(short)

        def leave(_: nn.Module, __: object, ___: object) -> None:
            stack.pop()

        # First: where another hook raises, the name is on the stack that ``leave`` takes it off.
        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        # always_call: a forward that raises must take its name off the stack as well.
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
