"""The options of a runner that can be refused before anything is opened.

Rules of this file: checks of single arguments; every refusal is a UsageError that names the
argument, what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolchain.core.errors import UsageError
from toolchain.core.words import LOADED

# The provider of an engine, which is none of onnxruntime's.
ENGINE = "engine"


def checked_name(name: str) -> str:
    """Return ``name`` if a domain may be called so; raises UsageError otherwise."""
    if not LOADED.accepts(name):
        raise UsageError(
            f"expected a domain's name, got {name!r:.80}", fix=f"use {LOADED.expected}"
        )
    return name


def require_session(path: Path, provider: str | None) -> None:
    """Raise UsageError for a backbone that is to run as if it were an engine."""
    if provider == ENGINE:
        raise UsageError(
            f"provider: expected cpu, cuda or tensorrt for the backbone {path}, got {provider!r}",
            fix="name an engine's folder, which da3 build makes, or leave the provider out",
        )


def require_engines_own(provider: str | None, **options: object) -> None:
    """Raise UsageError for options that the engine's build decided, unless they are the default."""
    decided = {"flavour": "swap", "form": "if", "sessions": 1}
    faults = [
        f"{name}: expected what the engine was built as, got {value!r}"
        for name, value in options.items()
        if value != decided[name]
    ]
    if provider not in (None, ENGINE):
        faults.append(
            f"provider: expected {ENGINE!r} for the folder of an engine, got {provider!r}"
        )
    if faults:
        raise UsageError(faults[0], fix="leave it out, or name the backbone's folder instead")


def require_one_of(known: Sequence[str], **options: str) -> None:
    """Raise UsageError for arguments that are not among ``known``."""
    for name, value in options.items():
        if value not in known:
            raise UsageError(
                f"{name}: expected one of {', '.join(known)}, got {value!r:.80}",
                fix=f"set {name}={known[0]!r}",
            )


def require_positive(**limits: int) -> None:
    """Raise UsageError for arguments that are no whole number from 1; a bool is none."""
    for name, value in limits.items():
        if type(value) is not int or value < 1:
            raise UsageError(
                f"{name}: expected a whole number from 1, got {value!r:.80}", fix=f"set {name}=1"
            )
