"""Time the linked forms of one backbone: batch 1, batch 16, and the forms that lost.

Rules of this file: each function builds its sessions, times them against the plain backbone of the
same batch in one interleaved run, and lets them go. Contenders are named ``form state``.
"""

from __future__ import annotations

from benchmarks.forms import FormBench
from benchmarks.joins import REJECTED
from toolchain.bench.latency import STATES
from toolchain.core.timing import Call, Notify, Timing, interleaved

PLAIN = "plain"
Timings = dict[str, Timing]


def one(bench: FormBench, rounds: int, notify: Notify) -> Timings:
    """Time batch 1: both forms and ``static`` in every state, and the naive export."""
    plain, naive = bench.plain("if"), bench.naive()
    calls: dict[str, Call] = {
        PLAIN: bench.call(plain, 1),
        # The same session once more: as far as its ratio is from 1, so much is noise.
        "plain again": bench.call(plain, 1),
        "naive open": bench.naive_call(naive),
    }
    for name, runner in (("if", bench.swap("if")), ("rows", bench.swap("rows"))):
        calls |= {f"{name} {state}": bench.call(runner, 1, state) for state in STATES}
    calls |= {f"static {state}": bench.call(bench.static(state), 1) for state in STATES}
    return interleaved(calls, rounds=rounds, notify=notify)


def many(bench: FormBench, rounds: int, notify: Notify, *, batch: int = 16) -> Timings:
    """Time one batch: ``rows`` at once, and the batch-1 form in a loop, in every state."""
    calls: dict[str, Call] = {
        PLAIN: bench.call(bench.plain("rows"), batch),
        "plain loop": bench.call(bench.plain("if"), batch),
    }
    for name, runner in (("rows", bench.swap("rows")), ("if loop", bench.swap("if"))):
        calls |= {f"{name} {state}": bench.call(runner, batch, state) for state in STATES}
    return interleaved(calls, rounds=rounds, notify=notify)


def lost(bench: FormBench, rounds: int, notify: Notify) -> Timings:
    """Time the rejected forms at batch 1, with the form that won beside them."""
    swap = bench.swap("if")
    calls: dict[str, Call] = {PLAIN: bench.call(bench.plain("if"), 1)}
    calls |= {f"if {state}": bench.call(swap, 1, state) for state in STATES}
    for name, change in REJECTED.items():
        runner = bench.rejected(change)
        calls |= {f"{name} {state}": bench.call(runner, 1, state) for state in STATES}
    return interleaved(calls, rounds=rounds, notify=notify)
