"""What the runner adds to onnxruntime: a request against the bare call with the same tensors.

Rules of this file: batch 1, a prepared tensor, the first domain. Both sessions come from the same
graph with the same options, and are made anew several times. Both calls are timed within a round.
Nothing of this library is around the bare call.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from toolchain.bench.materials import Materials
from toolchain.bench.ways import Ways, bare, options_of
from toolchain.bundle.linkage import SWAP_IF
from toolchain.bundle.slots import slot_arrays
from toolchain.core.timing import Call, Notify, clock_of, rebuilt
from toolchain.device.runtime.ort.session import WEIGHTS_FOLDER

BUILDS = 8


def measure(
    materials: Materials,
    *,
    threads: int,
    rounds: int,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Return the timings ``bare`` and ``runner``, and ``slots``, how many tensors a request has."""
    bundle = materials.open()
    graph, slots = bundle.blob(SWAP_IF.file), slot_arrays(bundle.blob(bundle.names("slots")[0]))
    with ExitStack() as stack:

        def build() -> dict[str, Call]:
            options = options_of(threads)
            options.add_session_config_entry(WEIGHTS_FOLDER, str(materials.backbone))
            session = bare(graph, options)
            ways = stack.enter_context(Ways(materials, threads=threads))
            # Loads the first bundle, the one that ``graph`` and ``slots`` are of.
            ways.prepare("bundle", 1)
            image = ways.image()
            feeds = {"image": image, **slots}
            return {
                "bare": lambda: session.run(None, feeds),
                "runner": lambda: ways.runner.infer(image, "first"),
            }

        clock = clock_of(threads)
        timings = rebuilt(
            build, times=min(BUILDS, rounds), rounds=rounds, clock=clock, notify=notify
        )
    return {
        "clock": clock_of(threads),
        "slots": len(slots),
        **{name: asdict(timing) for name, timing in timings.items()},
    }
