"""``python -m tests.zoo [NAME ...]``: run models and write docs/models.md.

A NAME is a part of a model's name, ``ours`` stands for our own backbones; without one all are run.
Exit status 1 when a model does not do what its entry says.
"""

from __future__ import annotations

import sys

import torch

from tests.zoo import ours, table, trial
from tests.zoo.catalogue import ENTRIES


def main(names: list[str]) -> int:
    """Run, print a line per model, and keep what was found as soon as it is known."""
    torch.set_num_threads(1)
    passed = True
    if not names or "ours" in names:
        for name in ours.OURS:
            twin = ours.compare(name)
            table.write([], [twin])
            passed &= twin.passed
            print(table.twin_line(twin), flush=True)  # noqa: T201
    for entry in ENTRIES:
        if not names or any(name in entry.name for name in names):
            row = trial.run(entry)
            table.write([row], [])
            passed &= row.expected
            print(table.line(row), flush=True)  # noqa: T201
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
