"""A disk that refuses: full, broken or read-only, at any call, once or from then on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.power import SCRATCH
from tests.support.recorded import Recorder
from tests.support.store_script import Promise, broken, steps, warm
from toolchain.core.errors import StorageError
from toolchain.device.store import generation
from toolchain.device.store.layout import CURRENT
from toolchain.device.store.store import Store

CALLS = 300  # about as many as the script makes
REASONS = (errno.ENOSPC, errno.EIO, errno.EROFS)


class Refusing:
    """Refuses the call number ``first``, or all from there on."""

    def __init__(self, first: int, reason: int, *, lasting: bool) -> None:
        self.left, self.reason, self.lasting = first, reason, lasting

    def __call__(self, what: str) -> None:
        self.left -= 1
        if self.left == 0 or (self.lasting and self.left < 0):
            raise OSError(self.reason, "refused")


@settings(max_examples=25)
@given(
    first=st.integers(1, CALLS),
    reason=st.sampled_from(REASONS),
    lasting=st.booleans(),
)
def test_a_disk_that_refuses_leaves_the_old_or_the_new_store(
    first: int, reason: int, lasting: bool
) -> None:
    """Law: an error of ours or success; nothing half-written; what runs is the old or the new."""
    warm()
    with TemporaryDirectory(dir=SCRATCH) as folder:
        base = Path(folder)
        promised = _try(base, Refusing(first, reason, lasting=lasting))
        old = promised[-1] if promised else None
        if not (base / "store" / "state.json").is_file():
            assert old is None
            return
        store = Store.open(base / "store")
        if old is not None:
            _runs_on(store, old)
        if not lasting:
            assert not list(base.rglob("*.partial"))
        every = _undisturbed()
        new = every[len(promised)] if len(promised) < len(every) else None
        # A full disk takes no note of a rollback; what failed stops all the same.
        stopped = [one for one in every if one.step == "floors"]
        more = stopped if new is not None and new.step == "roll back" else []
        assert broken(base / "store", old, new, *more) == ""


@cache
def _undisturbed() -> list[Promise]:
    """What each step comes to; the clock of the script stands still, so it is always the same."""
    with TemporaryDirectory(dir=SCRATCH) as folder:
        return _try(Path(folder), lambda what: None)


def _try(base: Path, before: Callable[[str], None]) -> list[Promise]:
    """Run the script until the disk refuses; return the steps that were acknowledged."""
    promised = list[Promise]()
    recorder = Recorder(base, before)
    try:
        with recorder.recording():
            for step in steps(base / "store"):
                promised.append(Promise.of(Store.open(base / "store"), step))
    except StorageError as err:
        assert err.fix
    return promised


def _runs_on(store: Store, old: Promise) -> None:
    """Before anything is put right, applications find whole content."""
    number = generation.pointed(store.layout, CURRENT)
    assert number >= 0
    if number:
        assert all(path.is_dir() for path in (store.path / CURRENT).glob("*/*"))
    assert number or old.state.current in (0, 1)
