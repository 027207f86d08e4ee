"""Frames of real videos; threads that read ahead or drop; what is no video."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections.abc import Generator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.videos import BLUE, GREEN, RED, flat, noise, write
from toolchain.core.errors import DataError, MissingPackageError
from toolchain.pictures import video as video_file
from toolchain.pictures.video import Still, ahead, camera, newest, video

BLACK = flat((0, 0, 0))


def still(index: int) -> Still:
    return Still(index, None, BLACK)


def open_files(path: Path) -> int:
    """How often this process holds ``path`` open."""
    links = Path("/proc/self/fd").iterdir()
    return sum(link.is_symlink() and link.resolve() == path.resolve() for link in links)


# -- videos ------------------------------------------------------------------------------------


def test_frames_come_in_order_with_number_time_and_red_green_blue(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", [flat(RED), flat(GREEN), flat(BLUE)])
    frames = list(video(path))
    assert [one.index for one in frames] == [0, 1, 2]
    assert [one.at_s for one in frames] == pytest.approx([0.0, 0.1, 0.2])
    for one, colour in zip(frames, (RED, GREEN, BLUE), strict=True):
        assert one.pixels.dtype == np.uint8
        assert np.abs(one.pixels.astype(int) - colour).max() < 12


@given(every=st.integers(1, 9))
def test_every_nth_frame_keeps_its_own_number(
    every: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "seven.avi"
    if not path.exists():
        write(path, [flat((30 * i, 0, 0)) for i in range(7)])
    assert [one.index for one in video(path, every)] == list(range(0, 7, every))


def test_closing_early_lets_go_of_the_file_and_the_thread(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", noise(9))
    frames = video(path)
    next(frames)
    assert open_files(path) == 1
    frames.close()
    assert open_files(path) == 0
    assert "da3-decode" not in "".join(thread.name for thread in threading.enumerate())


def test_nothing_is_opened_before_the_first_frame_is_asked_for(tmp_path: Path) -> None:
    video(tmp_path / "missing.avi").close()


def test_a_video_that_breaks_off_gives_its_frames_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", noise(40), "mp4v")
    data = bytearray(path.read_bytes())
    begin, end = len(data) // 3, len(data) // 2
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    numbers: list[int] = []
    with pytest.raises(DataError, match=r"a\.mp4: expected 40 frames, got \d+ before it breaks"):
        numbers.extend(one.index for one in video(path))
    assert numbers == list(range(len(numbers)))
    assert 0 < len(numbers) < 40


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", noise(9), "mp4v")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\.mp4: OpenCV .* cannot open it"):
        next(video(path))


@pytest.mark.parametrize("data", [b"", b"RIFF" + bytes(5000), b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_video_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.avi"):
        next(video(path))


def test_a_header_that_claims_giant_frames_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", [BLACK])
    data = path.read_bytes()
    for real, giant in (
        (struct.pack("<ii", 32, 32), struct.pack("<ii", 9000, 9000)),  # of the container
        (struct.pack(">BHH", 8, 32, 32), struct.pack(">BHH", 8, 9000, 9000)),  # of the JPEG in it
    ):
        assert real in data
        data = data.replace(real, giant)
    path.write_bytes(data)
    with pytest.raises(DataError, match="at most 64000000 pixels, got 9000 x 9000"):
        next(video(path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.avi")
    with pytest.raises(DataError, match="expected a video file, found none"):
        next(video(tmp_path / "a.avi"))


def test_a_name_with_a_pattern_is_no_series_of_files(tmp_path: Path) -> None:
    (tmp_path / "a01.avi").write_bytes(write(tmp_path / "b.avi", [BLACK]).read_bytes())
    with pytest.raises(DataError, match="found none"):
        next(video(tmp_path / "a%02d.avi"))


def test_a_playlist_in_disguise_reaches_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n"
        (tmp_path / "a.ts").write_text(text)
        with pytest.raises(DataError):
            next(video(tmp_path / "a.ts"))
        with pytest.raises(BlockingIOError):
            server.accept()


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", [BLACK])
    monkeypatch.setitem(sys.modules, "cv2", None)
    for frames in (video(path), camera(0)):
        with pytest.raises(MissingPackageError, match=r"pip install '.\[video\]'"):
            next(frames)


def test_no_such_camera() -> None:
    with pytest.raises(DataError, match=r"camera:9999: OpenCV .* cannot open it") as caught:
        next(camera(9999))
    assert "camera:0" in caught.value.fix


# -- one frame ahead ---------------------------------------------------------------------------


def test_ahead_makes_one_more_than_is_asked_for_and_closes_what_it_reads() -> None:
    made: list[int] = []
    closed = threading.Event()

    def stills() -> Generator[Still]:
        try:
            for index in range(9):
                made.append(index)
                yield still(index)
        finally:
            closed.set()

    frames = ahead(stills())
    assert [one.index for one in islice(frames, 3)] == [0, 1, 2]
    frames.close()
    assert made == [0, 1, 2, 3]
    assert closed.is_set()


@pytest.mark.parametrize("reading", [ahead, newest])
def test_an_error_comes_after_the_last_frame(reading: type) -> None:
    def stills() -> Generator[Still]:
        yield still(0)
        raise DataError("broken off")

    frames = reading(stills())
    assert next(frames).index == 0
    with pytest.raises(DataError, match="broken off"):
        next(frames)


# -- the newest frame --------------------------------------------------------------------------


def test_frames_that_came_while_the_reader_was_busy_are_dropped() -> None:
    busy, came = threading.Event(), threading.Event()

    def stills() -> Generator[Still]:
        yield still(0)
        busy.wait()
        yield from map(still, range(1, 5))
        came.set()

    frames = newest(stills())
    assert next(frames).index == 0
    busy.set()
    came.wait()
    assert [one.index for one in frames] == [4]


def test_the_newest_of_a_real_capture_only_goes_forward_and_ends_on_the_last(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.avi", noise(30))
    numbers = [one.index for one in newest(video_file._video(path, 1))]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 29


def test_closing_ends_a_camera_that_goes_on_for_ever() -> None:
    closed = threading.Event()

    def stills() -> Generator[Still]:
        try:
            while True:
                yield still(0)
        finally:
            closed.set()

    frames = newest(stills())
    next(frames)
    frames.close()
    assert closed.is_set()
