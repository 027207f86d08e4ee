"""Power cuts: whatever is left, the store comes back as it was before a step, or after it.

Three ways to see the calls of a store (inside the process, in a file system, by strace), and one
law. A fourth test takes each fsync away and asks the law to notice.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support import killed, lossy
from tests.support.power import SCRATCH, Acknowledged, Call, Disk, Image, cuts, seen, without
from tests.support.recorded import Recorder
from tests.support.store_script import Promise, broken, steps, warm
from toolchain.core.errors import Da3Error
from toolchain.device.store.store import Store

Cut = tuple[Promise | None, Promise | None, Image]


@dataclass(frozen=True)
class Recording:
    """The calls of the script, the steps that it acknowledged, and what is on the disk now."""

    calls: list[Call]
    steps: Acknowledged[Promise]
    seen: tuple[tuple[str, str, bytes], ...]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A new folder for images."""
    with TemporaryDirectory(dir=SCRATCH) as folder:
        yield Path(folder) / "cut"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    if sys.version_info < (3, 11):
        pytest.skip("pathlib of Python 3.10 keeps functions of its own, which no recorder sees")
    base = tmp_path_factory.mktemp("recorded")
    warm()
    recorder, acknowledged = Recorder(base), list[tuple[int, Promise]]()
    with recorder.recording():
        for step in steps(base / "store", recorder.damage):
            promise = Promise.of(Store.open(base / "store"), step)
            acknowledged.append((len(recorder.calls), promise))
    return Recording(recorder.calls, acknowledged, seen(base))


def told(cut: Cut, scratch: Path) -> str:
    """How the law is broken by a cut, nothing where it holds."""
    old, new, image = cut
    # Nobody promises anything while somebody else changes files.
    if new is not None and new.step == "damage":
        return ""
    shutil.rmtree(scratch, ignore_errors=True)
    image.lay_out(scratch)
    try:
        wrong = broken(scratch / "store", old, new)
    except Da3Error as err:
        wrong = f"{type(err).__name__}: {err}"
    names = [one and one.step for one in (old, new)]
    return f"{names}, {image.name}: {wrong}" if wrong else ""


def hold(found: Iterable[Cut], scratch: Path) -> None:
    wrong = [message for message in (told(cut, scratch) for cut in found) if message]
    assert not wrong, "\n".join(wrong[:10])


def some(found: Iterable[Cut], count: int) -> list[Cut]:
    """``count`` of them, evenly."""
    every = list(found)
    return [every[place * len(every) // count] for place in range(count)]


def test_the_recording_is_all_that_happened(recording: Recording) -> None:
    (end,) = {image.entries for image in Disk(recording.calls).cuts() if image.name == "everything"}
    assert tuple(sorted(end)) == recording.seen


def test_a_cut_leaves_the_old_or_the_new_store(recording: Recording, scratch: Path) -> None:
    hold(some(cuts(recording.calls, recording.steps), 60), scratch)


@pytest.mark.full
def test_every_cut_leaves_the_old_or_the_new_store(recording: Recording, scratch: Path) -> None:
    every = list(cuts(recording.calls, recording.steps))
    print(f"{len(every)} images of {len(recording.calls)} calls")  # noqa: T201
    assert len(every) >= 500
    hold(every, scratch)


def test_a_start_is_cut_off_too(recording: Recording, scratch: Path) -> None:
    """Power that comes and goes: recovery is cut at each of its calls, and taken again."""
    some_cuts = some(cuts(recording.calls, recording.steps), 24)
    for old, new, image in some_cuts:
        shutil.rmtree(scratch, ignore_errors=True)
        image.lay_out(scratch)
        if old is None or (new is not None and new.step == "damage"):
            continue
        recorder = Recorder(scratch)
        with recorder.recording(), Store.open(scratch / "store").writing() as writer:
            writer.recover()
        again = list(cuts(recorder.calls, (), start=image))
        hold(((old, new, left) for _, _, left in some(again, min(8, len(again)))), scratch)


def key(cut: Cut) -> tuple[object, ...]:
    old, new, image = cut
    return old and old.step, new and new.step, image.entries


def test_without_any_one_fsync_the_law_is_broken(recording: Recording, scratch: Path) -> None:
    """Each fsync in the text of the store is taken away in turn; one that nobody misses must go."""
    calls, promised = recording.calls, recording.steps
    # What the whole store may leave as well is judged above.
    known = {key(cut) for cut in cuts(calls, promised)}
    sites = {call.site for call in calls if call.what == "sync"}
    needless = []
    for site in sorted(sites):
        left = cuts(*without(calls, promised, site))
        if not any(told(cut, scratch) for cut in left if key(cut) not in known):
            needless.append(site)
    assert len(sites) > 40
    assert not needless, "\n".join(needless)


def test_every_fsync_is_listed(recording: Recording, golden: Callable[[str, str], None]) -> None:
    """In the order of each step: who takes one away has to say so here."""
    lines, start = [], 0
    for end, promise in recording.steps:
        lines.append(promise.step)
        synced = (call.path for call in recording.calls[start:end] if call.what == "sync")
        lines += [f"  {re.sub('[0-9a-f]{64}', '<hex>', _plain(path))}" for path in synced]
        start = end
    golden("store_fsyncs.txt", "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def on_fuse(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The same script on a file system that writes down what reaches it."""
    if reason := lossy.lacking():
        pytest.skip(reason)
    warm()
    folder = tmp_path_factory.mktemp("fuse") / "disk"
    promised = []
    with lossy.mounted(folder) as calls:
        for place, step in enumerate(steps(folder / "store", durably_changed)):
            promised.append(Promise.of(Store.open(folder / "store"), step))
            (folder / f"mark{place}").mkdir()
        end = seen(folder)
    return _marked(calls, promised, end)


def durably_changed(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    with path.open("r+b", buffering=0) as file:
        file.truncate(0)
        file.write(data)
        os.fsync(file.fileno())


def _marked(calls: list[Call], promised: list[Promise], end: object) -> Recording:
    """Tell from the marks which calls belong to which step."""
    acknowledged = list[tuple[int, Promise]]()
    left, last = list[Call](), Disk(calls)
    (whole,) = {image.entries for image in last.cuts() if image.name == "everything"}
    assert tuple(sorted(whole)) == end
    for call in calls:
        if call.path.startswith("mark"):
            acknowledged.append((len(left), promised[len(acknowledged)]))
        else:
            left.append(call)
    return Recording(left, acknowledged, whole)


def test_a_file_system_sees_the_same_calls(recording: Recording, on_fuse: Recording) -> None:
    """So nothing of the store goes round what was recorded inside the process."""

    def plain(calls: list[Call]) -> list[tuple[str, str, str]]:
        # The kernel cuts long writes, damage is several calls there, and folders are emptied in the
        # order in which the file system lists them.
        other = ("write", "truncate", "damage", "unlink", "rmdir")
        kept = [call for call in calls if call.what not in other]
        named = [(call.what, _plain(call.path), _plain(call.to)) for call in kept]
        return [name for name in named if not name[1].endswith("bundle.da3b")]

    assert plain(on_fuse.calls) == plain(recording.calls)


def _plain(path: str) -> str:
    return re.sub(r"[0-9a-f]{12}\.partial", "partial", path)


def test_a_lossy_file_system(on_fuse: Recording, scratch: Path) -> None:
    hold(some(cuts(on_fuse.calls, on_fuse.steps), 50), scratch)


@pytest.mark.full
def test_a_lossy_file_system_at_every_call(on_fuse: Recording, scratch: Path) -> None:
    every = list(cuts(on_fuse.calls, on_fuse.steps))
    print(f"{len(every)} images of {len(on_fuse.calls)} calls on a lossy file system")  # noqa: T201
    assert len(every) >= 500
    hold(every, scratch)


def kill(places: Iterable[tuple[str, int]], folder: Path, promised: list[Promise]) -> int:
    """Kill the script at each place and ask the law; return how often it was killed."""
    wrong, kills = [], 0
    folder.mkdir()
    with killed.Killer() as killer:
        for call, when in places:
            own = folder / f"{call}{when}"
            own.mkdir()
            kills += killer.run(own, call, when)
            done = len((own / "acknowledged").read_text().splitlines())
            old = promised[done - 1] if done else None
            new = promised[done] if done < len(promised) else None
            if message := broken(own / "store", old, new):
                wrong.append(f"{call} {when}: {message}")
            shutil.rmtree(own)
    assert not wrong, "\n".join(wrong[:10])
    return kills


@pytest.fixture(scope="module")
def undamaged(recording: Recording) -> list[Promise]:
    promised = [promise for _, promise in recording.steps]
    return promised[: [one.step for one in promised].index("damage")]


def how_often(recording: Recording) -> dict[str, int]:
    """How often the script makes each call that is killed, about: a name may stand for two."""
    names = {"write": "pwrite64", "sync": "fsync", "truncate": "ftruncate"}
    end = next(at for at, promise in recording.steps if promise.step == "damage")
    made = [names.get(call.what, call.what) for call in recording.calls[:end]]
    return {name: made.count(name) for name in killed.CALLS}


@pytest.mark.skipif(bool(killed.lacking()), reason=killed.lacking())
def test_a_kill_leaves_the_old_or_the_new_store(
    recording: Recording, undamaged: list[Promise], scratch: Path
) -> None:
    every = [(c, n + 1) for c, times in how_often(recording).items() for n in range(times)]
    places = [every[place * len(every) // 36] for place in range(36)]
    assert kill(places, scratch, undamaged) >= 30


@pytest.mark.full
@pytest.mark.skipif(bool(killed.lacking()), reason=killed.lacking())
def test_a_kill_at_every_call(
    recording: Recording, undamaged: list[Promise], scratch: Path
) -> None:
    every = [(c, n + 1) for c, times in how_often(recording).items() for n in range(times)]
    kills = kill(every, scratch, undamaged)
    print(f"{kills} kills")  # noqa: T201
    assert kills >= 100
