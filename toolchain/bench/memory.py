"""What one more domain costs in memory and on disk, for each way to have it.

Rules of this file: each way runs in a process of its own, so that no other way's leftovers are in
it. Every domain is put in place and asked once, because memory that is only promised does not
count. Resident bytes are those of proc(5): ``statm`` for all, ``smaps_rollup`` for what no other
process shares. Without /proc this file guesses nothing.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from toolchain.bench import child
from toolchain.bench.materials import Materials, from_json
from toolchain.bench.ways import Kind, Ways
from toolchain.core.errors import RunError
from toolchain.core.timing import Notify

STATM, ROLLUP = Path("/proc/self/statm"), Path("/proc/self/smaps_rollup")


def measure(
    materials: Materials,
    *,
    threads: int,
    domains: int,
    many: int,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Return, by way, what so many ``domains`` cost; our way also for ``many``.

    For ``many`` the same bundles are loaded again under other names.

    Raises RunError where the system does not tell.
    """
    # Raises at once, before minutes of work, where the system does not tell.
    resident_bytes()
    kinds: list[Kind] = ["bundle"]
    kinds += ["whole"] if materials.wholes else []
    kinds += ["shared", "shared, extended"] if materials.shared else []
    ways: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        request = {"materials": materials.to_json(), "threads": threads, "kind": kind}
        count = max(domains, many) if kind == "bundle" else domains
        series = child.run("memory", {**request, "count": count}, notify=notify)
        size = {"file_bytes": _file_bytes(materials, kind)}
        ways[kind] = _figures(series, 1, domains) | size
        if kind == "bundle" and many > domains:
            ways["bundle, many"] = _figures(series, domains, many) | size
    slots = _slots_bytes(materials)
    return {
        "slots_bytes": slots,
        "ways": {
            kind: figures | {"ratio": figures["resident_bytes_each"] / slots}
            for kind, figures in ways.items()
        },
    }


def _figures(series: Mapping[str, list[int]], first: int, last: int) -> dict[str, Any]:
    """Return what is resident with ``last`` domains, and per domain from ``first`` to there."""
    resident, private = series["resident"], series["private"]
    steps = max(1, last - first)
    return {
        "domains": last,
        "first_bytes": resident[0],
        "all_bytes": resident[last - 1],
        "resident_bytes_each": (resident[last - 1] - resident[first - 1]) / steps,
        "private_bytes_each": (private[last - 1] - private[first - 1]) / steps,
        "series": resident[:last],
    }


def _file_bytes(materials: Materials, kind: Kind) -> float:
    files = {"bundle": materials.bundles, "whole": materials.wholes}.get(kind, materials.shared)
    return mean(path.stat().st_size for path in files)


def _slots_bytes(materials: Materials) -> float:
    """Return the mean bytes of a domain's own tensors."""
    bundles = [materials.open(index) for index in range(len(materials.bundles))]
    return mean(len(one.blob(one.names("slots")[0])) for one in bundles)


def in_child(request: Mapping[str, Any], *, notify: Notify) -> dict[str, list[int]]:
    """Put ``count`` domains in place one after the other and look at the memory after each."""
    kind: Kind = request["kind"]
    loaded = []
    series: dict[str, list[int]] = {"resident": [], "private": []}
    with Ways(from_json(request["materials"]), threads=request["threads"]) as ways:
        ways.prepare(kind, 1)
        image = ways.image()
        for index in range(request["count"]):
            loaded.append(ways.load(kind, index))
            loaded[-1].ask(image)
            # Else garbage of the load would count as the domain's memory.
            gc.collect()
            series["resident"].append(resident_bytes())
            series["private"].append(private_bytes())
            notify(f"{kind}, {index + 1} of {request['count']}")
    return series


def resident_bytes(path: Path = STATM) -> int:
    """Return this process's resident memory in bytes. Raises RunError where /proc does not tell."""
    try:
        return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError) as err:
        raise RunError(
            f"expected this process's memory in {path}, got: {err}",
            fix="memory is measured on Linux alone; leave it out with --parts",
        ) from err


def private_bytes(path: Path = ROLLUP) -> int:
    """Return the bytes that this process alone has resident (private clean and dirty pages).

    Raises RunError where /proc does not tell.
    """
    try:
        lines = path.read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))
    except (OSError, IndexError, ValueError) as err:
        raise RunError(
            f"expected this process's memory in {path}, got: {err}",
            fix="memory is measured on Linux 4.14 or newer; leave it out with --parts",
        ) from err
