"""What one training step really keeps and allocates.

Rules of this file: it runs the step it is given and counts; no shape is interpreted. *Kept* are the
storages that autograd holds for the backward pass, seen by saved-tensor hooks, each once and whole
(a view keeps all of its storage). Parameters and buffers are not counted, they are there anyway;
values made from them are (a masked copy of a weight). The picture batch and its labels are not
counted either: the loader holds them, whatever the method.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

HOW_KEPT = (
    "saved-tensor hooks; unique storages counted whole; parameters, buffers, pictures and labels "
    "left out"
)
HOW_PEAK = {
    "cpu": "running sum of the CPU allocator's events (torch.profiler, profile_memory) over one "
    "step, beyond what is held at its start; scratch memory that oneDNN takes past PyTorch's "
    "allocator is not in it",
    "cuda": "torch.cuda.max_memory_allocated over one step, beyond what is held at its start",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes kept for the backward pass, in all and by module (``layer1.0.relu``, ``block03...``).

    What the domain has in place of backbone tensors stands under ``own.``, what is kept outside of
    any module (the loss) under an empty name. ``stock`` names the functions without a lean form
    and what they keep; ``unknown`` are those among them without a rule of their own, counted by a
    general one. Both are the analytic count's alone.
    """

    bytes: int
    by_layer: Mapping[str, int]
    stock: Mapping[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def largest(self, count: int) -> list[tuple[str, int]]:
        """Return the ``count`` layers that keep the most, largest first."""
        return sorted(self.by_layer.items(), key=lambda item: -item[1])[:count]


def stored(model: nn.Module, step: Callable[[], Tensor], *, held: Iterable[Tensor] = ()) -> Stored:
    """Run ``step``, a forward of ``model`` with its loss, and count what is kept for its backward.

    ``held``: tensors that are there anyway, such as pictures ``[N, C, H, W]`` and labels ``[N]``.
    ``step`` returns the loss; nothing is run backward.
    """
    ledger = Ledger()
    ledger.ignore(*model.parameters(), *model.buffers(), *held)

    def pack(tensor: Tensor) -> Tensor:
        ledger.count(tensor, stack.name)
        return tensor

    with named(model) as stack, torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        loss = step()
    found = ledger.stored()
    del loss
    return found


class Ledger:
    """Storages counted once each, by who kept them first."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._alive: list[torch.UntypedStorage] = []  # an address may not be used again meanwhile
        self._by_layer: dict[str, int] = {}

    def ignore(self, *tensors: Tensor) -> None:
        """Leave out what is there anyway."""
        self._seen |= {address(tensor) for tensor in tensors}
        self._alive += [tensor.untyped_storage() for tensor in tensors]

    def has(self, tensor: Tensor) -> bool:
        """Return whether a tensor's storage was counted or left out."""
        return address(tensor) in self._seen

    def count(self, tensor: Tensor, name: str) -> int:
        """Count a tensor's storage under ``name`` and return the bytes that are new."""
        storage, place = tensor.untyped_storage(), address(tensor)
        if place in self._seen:
            return 0
        self._seen.add(place)
        self._alive.append(storage)
        return self.add(storage.nbytes(), name)

    def add(self, count: int, name: str) -> int:
        """Count ``count`` bytes that no tensor stands for under ``name``, and return them."""
        if count:
            self._by_layer[name] = self._by_layer.get(name, 0) + count
        return count

    def stored(self, stock: Mapping[str, int] | None = None) -> Stored:
        """Return what was counted."""
        by_layer = dict(self._by_layer)
        return Stored(sum(by_layer.values()), by_layer, dict(stock or {}))


def address(tensor: Tensor) -> int:
    """Return what tells a tensor's storage from all others that are alive."""
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

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def peak(step: Callable[[], None], *, device: str = "cpu") -> int:
    """Return the most bytes that ``step`` has allocated at once, beyond what is held at its start.

    ``HOW_PEAK[device]`` says how it is counted.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    seen = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _without_stderr():
        seen.start()
    try:
        step()
    finally:
        with _without_stderr():
            seen.stop()
    return _highest(_allocations(seen))


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what the profiler's C++ part writes when it starts and stops, past any setting."""
    try:
        before = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _allocations(seen: profile) -> Iterator[int]:
    """Yield the CPU allocator's events in their order: bytes taken, or given back as negative."""
    assert seen.profiler is not None
    results = seen.profiler.kineto_results
    assert results is not None
    events = [e for e in results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        yield event.nbytes()  # type: ignore[attr-defined]  # missing in torch's stubs


def _highest(changes: Iterable[int]) -> int:
    held = highest = 0
    for change in changes:
        held += change
        highest = max(highest, held)
    return highest
