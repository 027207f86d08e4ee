"""The agent as a service of systemd: its unit, as text.

Rules of this file: it writes nothing; whoever runs the device puts the text where units are. What
stands in the unit beside user, store and command is in ``da3-agent.service.in``.
"""

from __future__ import annotations

import re
import sys
from importlib.resources import files
from pathlib import Path

from toolchain.core.errors import UsageError


def unit_text(store: Path, user: str) -> str:
    """Return the unit of an agent that keeps ``store`` as ``user``.

    It runs this Python, with this toolchain. Raises UsageError for a user who is root or whom no
    system can have, and for a path that no unit can name.
    """
    if re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user) is None or user == "root":
        raise UsageError(
            f"expected the name of a user who is not root, got {user!r:.80}",
            fix="make one: useradd --system da3",
        )
    folder = str(store.absolute())
    if not folder.isprintable() or '"' in folder or "\\" in folder:
        raise UsageError(
            f"expected a path without quotes and backslashes, got {folder!r:.200}",
            fix="keep the store elsewhere, such as in /var/lib/da3",
        )
    words = [sys.executable, "-m", "toolchain", "device", "agent", "--store", folder]
    template = (files(__package__) / "da3-agent.service.in").read_text(encoding="utf-8")
    return template.format(command=" ".join(map(_quoted, words)), user=user, store=_quoted(folder))


def _quoted(word: str) -> str:
    """Return a word for a unit: in quotes where it has spaces, and no specifier of systemd's."""
    plain = word.replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if " " in plain else plain
