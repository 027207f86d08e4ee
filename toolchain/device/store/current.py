"""What is current in a store, for those who only read: the runner, and applications.

Rules of this file: it reads links and writes nothing, takes no lock, and needs no state. What it
returns are the folders themselves, so a generation that comes a moment later changes none of them.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.errors import StoreError
from toolchain.core.files import names
from toolchain.device.engine.cache import EngineStore
from toolchain.device.store.layout import CURRENT

_MOVED_TO, _CREATE, _NONBLOCK, _CLOEXEC = 0x80, 0x100, 0o4000, 0o2000000
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Running:
    """A generation as it is to run.

    ``link``: where ``current`` leads, empty where there is none yet. ``backbone``: the folder of
    the artefact, or of the engine that was built of it here; None while none is installed.
    ``domains``: the installed folders by name.
    """

    link: str
    backbone: Path | None
    domains: Mapping[str, Path]


NOTHING = Running("", None, {})


def read_running(store: Path) -> Running:
    """Return what is current in the store in the folder ``store``.

    Raises StoreError for links that lead nowhere and for a generation with several backbones: a
    runner has one.
    """
    for _ in range(_TRIES):
        link = current_link(store)
        if not link:
            return NOTHING
        try:
            backbones = _folders(store / link / "backbones")
            domains = _folders(store / link / "domains")
        except OSError:
            # Another generation came, and this one was cleared away.
            if current_link(store) != link:
                continue
            raise StoreError(
                f"{store}: expected the generation {link}, got a link that leads nowhere",
                fix="let the device put it right: da3 device recover",
            ) from None
        if len(backbones) > 1:
            raise StoreError(
                f"{store}: expected one backbone in {link}, got {', '.join(sorted(backbones))}",
                fix="activate the domains of one backbone",
            )
        backbone = next(iter(backbones.values()), None)
        return Running(link, None if backbone is None else _engine_of(store, backbone), domains)
    raise StoreError(f"{store}: its current generation changes all the time", fix="try again")


def current_link(store: Path) -> str:
    """Return where ``current`` leads, empty where there is none."""
    try:
        return str((store / CURRENT).readlink())
    except FileNotFoundError:
        return ""
    except OSError as err:
        raise StoreError(
            f"{store / CURRENT}: expected a link, got {err.strerror}", fix="da3 device recover"
        ) from err


@contextmanager
def changes(store: Path, *, poll_s: float) -> Iterator[Callable[[float], None]]:
    """Yield a function that waits until ``current`` may have changed, at most so many seconds.

    The kernel tells (inotify(7)) where it can; elsewhere the link is read every ``poll_s`` seconds.
    """
    handle = _inotify(store)
    try:
        yield _polling(store, poll_s) if handle is None else _told(handle)
    finally:
        if handle is not None:
            os.close(handle)


def _folders(folder: Path) -> dict[str, Path]:
    """Return where the links in ``folder`` lead, by name; each must lead to a folder."""
    found = {}
    for name in names(folder):
        path = Path(os.path.realpath(folder / name))
        if not path.is_dir():
            raise FileNotFoundError(path)
        found[name] = path
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    return found


def _engine_of(store: Path, backbone: Path) -> Path:
    """Return the engine that was built of a backbone here, or the backbone where there is none."""
    engines = EngineStore(store / "engines" / backbone.name).folders()
    return max(engines, key=lambda path: path.stat().st_mtime_ns, default=backbone)


def _inotify(store: Path) -> int | None:
    """Return a handle that tells of names that appear in the store; None where there is none."""
    try:
        libc = ctypes.CDLL(None)
        handle = int(libc.inotify_init1(_NONBLOCK | _CLOEXEC))
    except (OSError, AttributeError):
        return None
    if handle < 0:
        return None
    if libc.inotify_add_watch(handle, os.fsencode(store), _MOVED_TO | _CREATE) < 0:
        os.close(handle)
        return None
    return handle


def _told(handle: int) -> Callable[[float], None]:
    def wait(seconds: float) -> None:
        if select.select([handle], [], [], seconds)[0]:
            os.read(handle, 1 << 16)

    return wait


def _polling(store: Path, poll_s: float) -> Callable[[float], None]:
    def wait(seconds: float) -> None:
        deadline, link = time.monotonic() + seconds, current_link(store)
        while current_link(store) == link and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(poll_s, left))

    return wait
