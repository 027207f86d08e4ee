"""The policy of a device: what it shall run, from where, and when it may work on that.

Rules of this file: the schema ``da3.policy/1``, its reader, and pure questions to it. People edit
the file, so it is plain JSON in any form. All faults are told at once, and a device with a faulty
policy goes on with what runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from toolchain.core.canonical import parse_json
from toolchain.core.errors import PolicyError
from toolchain.core.fields import (
    ListOf,
    Nullable,
    Section,
    SectionOf,
    choice,
    key,
    matching,
    number,
    printable,
    text,
    whole,
)
from toolchain.core.files import read_limited, write_atomic
from toolchain.core.words import BOOLEAN, DOMAIN, IDENTIFIER, read_record, to_json

SCHEMA = "da3.policy/1"
POLICY_NAME = "policy.json"
LIMIT_BYTES = 1 << 20
_TIME_OF_DAY = matching(r"([01][0-9]|2[0-3]):[0-5][0-9]", "a time of day such as 02:30")
_ZONE = text("a time zone such as Europe/Berlin", lambda name: name in available_timezones())
_ADDRESS = text(
    "an address https://, http:// or file:// without spaces",
    lambda value: (
        value.startswith(("https://", "http://", "file://"))
        and value.isprintable()
        and " " not in value
        and len(value) <= 2000
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Section):
    """When the device may be changed: from one time of day to another, over midnight too.

    ``zone``: null for the device's own.
    """

    start: str = key(_TIME_OF_DAY)
    end: str = key(_TIME_OF_DAY)
    zone: str | None = key(Nullable(_ZONE), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health(Section):
    """How a device finds out whether what it tries is well.

    ``seconds``: how long it has to be well; ``every_s``: between two looks. ``command``: must end
    with 0; ``url``: must answer with a 2xx. Without both the domains' own self-tests run once more.
    """

    seconds: float = key(number(0, 86400), default=10.0)
    every_s: float = key(number(0, 3600, above=True), default=2.0)
    command: tuple[str, ...] = key(ListOf(printable(1000), 0, 64), default=())
    url: str | None = key(Nullable(_ADDRESS), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Section):
    """What a device shall run.

    ``repository``: where releases come from; null: by hand only. ``domains``: which to keep up to
    date; null: those that are installed. ``backbone``: the one to run them on, by name; null: the
    one that the newest releases need. ``unsigned``: whether a bundle without a signature may be
    installed by hand. ``poll_s``: between two looks at the repository, give or take a tenth.
    ``bandwidth``: bytes in a second; ``on_battery``: whether to work without mains power.
    """

    schema: str = key(choice(SCHEMA), default=SCHEMA)
    repository: str | None = key(Nullable(_ADDRESS), default=None)
    domains: tuple[str, ...] | None = key(Nullable(ListOf(DOMAIN, 0, 256)), default=None)
    backbone: str | None = key(Nullable(IDENTIFIER), default=None)
    unsigned: bool = key(BOOLEAN, default=False)
    poll_s: float = key(number(1, 7 * 86400), default=3600.0)
    bandwidth: int | None = key(Nullable(whole(1024, 2**40)), default=None)
    window: Window | None = key(Nullable(SectionOf(Window)), default=None)
    on_battery: bool = key(BOOLEAN, default=False)
    health: Health = key(SectionOf(Health), default=Health())


def read_policy(store: Path) -> Policy:
    """Return the policy of the store in the folder ``store``.

    Raises PolicyError with every fault, StorageError where there is none.
    """
    path = store / POLICY_NAME
    data = read_limited(path, limit_bytes=LIMIT_BYTES, what="policy")
    fix = f"edit {path}; docs/device.md lists its fields"
    try:
        value = parse_json(data)
    except ValueError as err:
        raise PolicyError(f"{path}: expected JSON, got {err}", fix=fix) from err
    return read_record(Policy, value, str(path), error=PolicyError, fix=fix)


def checked_policy(**fields: Any) -> Policy:
    """Return a policy of ``fields``. Raises PolicyError with every fault."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}
    document = {**to_json(Policy()), **values}
    fix = "see da3 device init --help"
    return read_record(Policy, document, "policy", error=PolicyError, fix=fix)


def write_policy(store: Path, policy: Policy) -> None:
    """Write the policy, one field a line, in the place of the one that is there."""
    data = json.dumps(to_json(policy), indent=2, ensure_ascii=False) + "\n"
    write_atomic(store / POLICY_NAME, data.encode(), overwrite=True)


def opens_in(window: Window | None, now: datetime) -> timedelta:
    """Return how long until ``now`` lies in the window; nothing while it does.

    ``now`` is aware of its zone. On a day on which clocks are changed the window keeps to the time
    of day that people read.
    """
    if window is None:
        return timedelta()
    local = now.astimezone(ZoneInfo(window.zone)) if window.zone else now.astimezone()
    start, end, at = (_minutes(word) for word in (window.start, window.end, f"{local:%H:%M}"))
    inside = start <= at < end if start <= end else at >= start or at < end
    if inside or start == end:
        return timedelta()
    seconds = local.second + local.microsecond / 1e6
    return timedelta(minutes=(start - at) % (24 * 60)) - timedelta(seconds=seconds)


def _minutes(word: str) -> int:
    hours, _, minutes = word.partition(":")
    return 60 * int(hours) + int(minutes)
