"""Timings are kept after every piece, and a killed build is told and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.errors import BuildError, StorageError
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.log import Journal
from toolchain.device.engine.tactics import (
    Interrupted,
    interrupted,
    open_cache,
    run,
    serialise,
    timings,
)

PIECES = ("side", "opened", "closed", "whole")
DEVICE = (("module", "tensorrt"), ("sm", "8.7"), ("l4t", None))


def grow(piece: str, before: bytes) -> bytes:
    """A build that adds its piece to the timings."""
    return before + piece.encode() + b";"


def test_timings_grow_from_piece_to_piece(tmp_path: Path) -> None:
    file = timings(tmp_path, DEVICE)
    assert run(file, PIECES, grow) is None
    assert file.load() == b"side;opened;closed;whole;"
    assert not file.marker.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.path.name]


@given(st.sampled_from(["module", "sm", "l4t"]), st.text(max_size=3))
def test_each_part_has_its_own_file(part: str, value: str) -> None:
    other = tuple((name, value if name == part else old) for name, old in DEVICE)
    same = other == DEVICE
    assert (timings(Path(), other).path == timings(Path(), DEVICE).path) == same


def test_build_that_fails_leaves_no_marker_and_keeps_timings(tmp_path: Path) -> None:
    file = timings(tmp_path, DEVICE)

    def fails(piece: str, before: bytes) -> bytes:
        if piece == "closed":
            raise BuildError("no")
        return grow(piece, before)

    with pytest.raises(BuildError):
        run(file, PIECES, fails)
    assert file.load() == b"side;opened;"
    assert interrupted(file) is None


KILLED = """
import sys, time
from pathlib import Path
from toolchain.device.engine.tactics import run, timings
def build(piece, kept):
    if piece == "closed":
        print("here", flush=True)
        time.sleep(60)
    return kept + piece.encode() + b";"
run(timings(Path(sys.argv[1]), (("module", "tensorrt"), ("sm", "8.7"), ("l4t", None))),
    ("side", "opened", "closed", "whole"), build)
"""


def test_killed_build_loses_one_piece(tmp_path: Path) -> None:
    """As the kernel ends a process that asks for too much memory: without a word."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        os.kill(child.pid, signal.SIGKILL)
    file = timings(tmp_path, DEVICE)
    assert file.load() == b"side;opened;"
    assert interrupted(file) == Interrupted("closed", ("side", "opened"))
    starts: dict[str, bytes] = {}

    def again(piece: str, before: bytes) -> bytes:
        starts[piece] = before
        return before if piece.encode() in before else grow(piece, before)

    assert run(file, PIECES, again) == Interrupted("closed", ("side", "opened"))
    assert starts["side"] == b"side;opened;"
    assert file.load() == b"side;opened;closed;whole;"
    assert interrupted(file) is None


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b'{"done":[1],"during":"a"}', b'{"done":"a","during":"a"}', b"\xff" * 99],
)
def test_marker_that_says_nothing(tmp_path: Path, text: bytes) -> None:
    file = timings(tmp_path, DEVICE)
    file.marker.write_bytes(text)
    assert interrupted(file) == Interrupted("", ())


def test_hostile_files(tmp_path: Path) -> None:
    file = timings(tmp_path, DEVICE)
    file.marker.mkdir()
    with pytest.raises(StorageError):
        interrupted(file)
    with pytest.raises(StorageError):
        run(file, PIECES, grow)
    file.marker.rmdir()
    file.marker.symlink_to(tmp_path / "nowhere")
    assert interrupted(file) is None
    assert run(file, PIECES[:1], grow) is None
    assert not (tmp_path / "nowhere").exists()
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(StorageError, match="regular file"):
        file.load()


def test_same_timings_are_not_written_again(tmp_path: Path) -> None:
    file = timings(tmp_path, DEVICE)
    file.save(b"same")
    os.utime(file.path, ns=(1, 1))
    run(file, PIECES, lambda _, before: before)
    assert file.path.stat().st_mtime_ns == 1
    run(file, PIECES, lambda _, before: b"")
    assert file.load() == b"same"


def test_module_that_measures_nothing_says_so(rtx: TensorRT) -> None:
    builder = rtx.module.Builder(rtx.logger)
    cache, note = open_cache(rtx, builder, b"")
    assert cache is None
    assert note == "tensorrt_rtx keeps no timings: it measures nothing while it builds"
    assert serialise(cache) == b""


@pytest.mark.parametrize(
    ("data", "says"), [(b"", ""), (b"good", ""), (b"bad", "the kept timings are not used: other")]
)
def test_cache_of_another_build_is_told(data: bytes, says: str) -> None:
    journal = Journal()

    def create(content: bytes) -> Any:
        if content == b"bad":
            journal.take("WARNING", "other")
        return SimpleNamespace(serialize=lambda: bytearray(content))

    features: Any = SimpleNamespace(timing_cache=True)
    trt = TensorRT(None, "tensorrt", "10.3", features, None, journal)
    builder = SimpleNamespace(
        create_builder_config=lambda: SimpleNamespace(create_timing_cache=create)
    )
    cache, note = open_cache(trt, builder, data)
    assert note == says
    assert serialise(cache) == data
