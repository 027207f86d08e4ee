"""``python -m tests.zoo [NAME ...]``: run all models and write docs/models.md, or run some.

A NAME is a part of a model's name. Exit status 1 when a model does not do what its entry says.
"""

from __future__ import annotations

import sys
import time

import torch

from tests.zoo import ours, table, trial
from tests.zoo.catalogue import ENTRIES


def main(names: list[str]) -> int:
    """Run, print a line per model, and write the page after a complete run."""
    torch.set_num_threads(1)
    started = time.monotonic()
    twins = [ours.compare(name) for name in ours.OURS if not names or name in names]
    for twin in twins:
        print(table.twin_line(twin), flush=True)  # noqa: T201
    chosen = [entry for entry in ENTRIES if not names or any(n in entry.name for n in names)]
    rows = []
    for entry in chosen:
        rows.append(trial.run(entry))
        print(table.line(rows[-1]), flush=True)  # noqa: T201
    if not names:
        table.write(rows, twins, time.monotonic() - started)
    failed = [row for row in rows if not row.expected]
    return int(bool(failed) or not all(twin.passed for twin in twins))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
