"""Whether a device runs on its battery.

Source: the kernel's sysfs-class-power (Documentation/ABI/testing/sysfs-class-power).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

SUPPLIES = Path("/sys/class/power_supply")


def on_battery(supplies: Path = SUPPLIES) -> bool:
    """Return whether there is a battery and no mains supply is on.

    A board that tells of no supply at all hangs on one: that is what most boards do.
    """
    kinds = [(_word(path / "type"), path) for path in sorted(supplies.glob("*"))]
    mains = [_word(path / "online") for kind, path in kinds if kind in ("Mains", "USB", "Wireless")]
    own = [kind for kind, path in kinds if kind == "Battery" and _word(path / "scope") != "Device"]
    return bool(own) and "1" not in mains


def _word(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="ascii")[:40].strip()
    return ""
