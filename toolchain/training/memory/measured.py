"""The most bytes that one training step has allocated at once.

Rules of this file: it runs the step that it is given and reads the allocator. What of it autograd
keeps between forward and backward is counted in ``lean.ledger``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

HOW_PEAK = {
    "cpu": "running sum of the CPU allocator's events (torch.profiler, profile_memory) over one "
    "step, beyond what is held at its start; scratch memory that oneDNN takes past PyTorch's "
    "allocator is not in it",
    "cuda": "torch.cuda.max_memory_allocated over one step, beyond what is held at its start",
}


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
    profiled = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _without_stderr():
        profiled.start()
    try:
        step()
    finally:
        with _without_stderr():
            profiled.stop()
    return _highest(_allocations(profiled))


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what the profiler's C++ part writes when it starts and stops, past any setting."""
    try:
        before = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    # The file descriptor itself: C++ does not write through sys.stderr.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _allocations(profiled: profile) -> Iterator[int]:
    """Yield the CPU allocator's events in their order: bytes taken, or given back as negative."""
    assert profiled.profiler is not None
    results = profiled.profiler.kineto_results
    assert results is not None
    events = [e for e in results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        yield event.nbytes()  # type: ignore[attr-defined]  # missing in torch's stubs


def _highest(changes: Iterable[int]) -> int:
    allocated = highest = 0
    for change in changes:
        allocated += change
        highest = max(highest, allocated)
    return highest
