"""The command line: ``da3`` and ``da3-export``.

Rules of this room: it parses, calls and prints, and decides nothing. Everything that it calls is in
the library, with the same names. Results go to stdout, progress and errors to stderr. With
``--json`` stdout is one JSON document, for an error too. A verb imports the library inside its
function, so that help and completion answer at once. Exit codes: 0 done, 1 error, 2 usage,
3 parity failed, 4 verification failed, 130 interrupted.

A new verb is a file in ``verbs`` and a line in ``app``.
"""

from __future__ import annotations

from toolchain.cli.app import root
from toolchain.cli.verbs.export import export

__all__ = ["export", "export_main", "main", "root"]


def main() -> None:
    """Run ``da3`` on the process's arguments and exit."""
    root.main(prog_name="da3")


def export_main() -> None:
    """Run ``da3-export``, which is ``da3 export``, on the process's arguments and exit."""
    export.main(prog_name="da3-export")
