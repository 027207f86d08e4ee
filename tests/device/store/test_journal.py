"""The journal: a chain of lines in two segments, which ends where the state says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.power import SCRATCH
from tests.support.stored import NOW, create
from toolchain.core.errors import StorageError, StoreDamagedError
from toolchain.device.store import journal
from toolchain.device.store.journal import Entry, Event
from toolchain.device.store.layout import Layout
from toolchain.device.store.state import Head
from toolchain.device.store.store import Store


def event(number: int) -> Event:
    return Event(NOW, "REPORT", {"id": number})


def filled(layout: Layout, count: int, limit_bytes: int = 1024) -> Head:
    head = Head()
    for number in range(count):
        head = journal.append(layout, head, [event(number)], limit_bytes=limit_bytes)
    return head


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_entries_follow_each_other_over_segments(layout: Layout) -> None:
    head = filled(layout, 20)
    entries = journal.read(layout, head)
    assert [entry.number for entry in entries] == list(range(entries[0].number, 21))
    assert entries[0].number > 1
    assert len(entries) > 4
    assert layout.journal.stat().st_size <= 1024
    assert layout.old_journal.stat().st_size <= 1024


def test_what_nobody_promised_is_cut_off(layout: Layout) -> None:
    """A process was killed between the entry and the state, or in the middle of the line."""
    head = filled(layout, 2, 4096)
    journal.append(layout, head, [event(7)], limit_bytes=4096)
    with layout.journal.open("ab") as file:
        file.write(b'{"about":{"id"')
    assert len(journal.read(layout, head)) == 2
    after = journal.append(layout, head, [event(8)], limit_bytes=4096)
    assert dict(journal.read(layout, after)[-1].about) == {"id": 8}
    assert layout.journal.stat().st_size == after.size


def test_a_segment_that_was_left_for_nothing_is_put_back(layout: Layout) -> None:
    head = filled(layout, 4)
    while (after := journal.append(layout, head, [event(0)], limit_bytes=1024)).size > head.size:
        head = after
    # The new segment is there, and the state still ends in the old one.
    assert layout.old_journal.is_file()
    before = journal.read(layout, head)
    again = journal.append(layout, head, [event(9)], limit_bytes=1 << 20)
    assert journal.read(layout, again)[:-1] == before
    assert not layout.old_journal.exists()


@settings(max_examples=40)
@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_one_changed_byte_is_found(place: int, change: int) -> None:
    """Law: any byte of what was promised, any other value."""
    with TemporaryDirectory(dir=SCRATCH) as folder:
        layout = Layout(Path(folder))
        head = filled(layout, 9)
        path = layout.journal if place % 2 else layout.old_journal
        data = bytearray(path.read_bytes())
        data[place % len(data)] ^= change
        path.write_bytes(data)
        with pytest.raises(StoreDamagedError):
            journal.read(layout, head)


def without_a_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:1], *lines[2:]]


def with_a_line_twice(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], *lines[1:]]


def in_another_order(lines: list[bytes]) -> list[bytes]:
    return [lines[1], lines[0], *lines[2:]]


def without_the_last(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def with_a_number_of_its_own(lines: list[bytes]) -> list[bytes]:
    return [lines[0].replace(b'"number":1', b'"number":5'), *lines[1:]]


def that_begins_in_the_middle(lines: list[bytes]) -> list[bytes]:
    return lines[2:]


def with_a_line_of_a_megabyte(lines: list[bytes]) -> list[bytes]:
    return [b'{"about":{"a":"' + b"x" * (1 << 20) + b'"}}', *lines]


def with_a_deep_line(lines: list[bytes]) -> list[bytes]:
    return [b"[" * 50_000, *lines]


def with_another_schema(lines: list[bytes]) -> list[bytes]:
    return [b'{"event":1}', *lines]


CHAINS = [
    *(without_a_line, with_a_line_twice, in_another_order, without_the_last),
    *(with_a_number_of_its_own, that_begins_in_the_middle, with_a_line_of_a_megabyte),
    *(with_a_deep_line, with_another_schema),
]


@pytest.mark.parametrize("change", CHAINS, ids=[change.__name__ for change in CHAINS])
def test_a_chain_that_was_changed_is_refused(
    layout: Layout, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    head = filled(layout, 5, 1 << 20)
    lines = layout.journal.read_bytes().splitlines()
    layout.journal.write_bytes(b"".join(line + b"\n" for line in change(lines)))
    with pytest.raises(StoreDamagedError):
        journal.read(layout, head)


def test_a_journal_that_is_a_pipe_or_gone_is_refused(layout: Layout) -> None:
    head = filled(layout, 3)
    layout.journal.unlink()
    for pipe in (False, True):
        if pipe:
            os.mkfifo(layout.journal)
        with pytest.raises(StoreDamagedError):
            journal.read(layout, head)
        with pytest.raises(StoreDamagedError):
            journal.append(layout, head, [event(1)], limit_bytes=1024)


def test_a_journal_behind_a_link_is_not_written(layout: Layout, tmp_path: Path) -> None:
    """Somebody else's file could be overwritten."""
    head = filled(layout, 1)
    layout.journal.rename(tmp_path / "elsewhere")
    layout.journal.symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(StorageError):
        journal.append(layout, head, [event(1)], limit_bytes=1024)
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_reader_is_not_disturbed_by_a_writer(tmp_path: Path) -> None:
    store = create(tmp_path / "store", journal_bytes=1024)
    with store.writing() as writer:
        for number in range(30):
            writer.report({"id": number})
            assert store.history()[-1].number == number + 2


def test_a_line_is_canonical_json(layout: Layout) -> None:
    head = filled(layout, 1)
    (line,) = layout.journal.read_bytes().splitlines()
    assert Entry.from_json(line).to_json() == line
    assert Store(layout.root, lambda: NOW).layout.journal == layout.journal
    assert head.entries == 1
