"""Streams over real folders and videos: order, faults of one frame and of all, an early end."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.pictures.test_video import open_files
from tests.support.drawn import pixels, same
from tests.support.exported import Fleet
from tests.support.videos import noise, write
from toolchain.core.errors import (
    ClosedError,
    DataError,
    TimeLimitError,
    UnknownNameError,
    UsageError,
)
from toolchain.device import Frame, Runner
from toolchain.device.runtime.stream import stream
from toolchain.pictures import video

COUNT = 5


@pytest.fixture(scope="module")
def first(fleet: Fleet) -> Iterator[Runner]:
    """A runner with one domain, which nobody changes."""
    with Runner(fleet["first"].backbone) as made:
        made.load(fleet["first"].bundle)
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in two levels, and what is none; nobody changes it."""
    top = tmp_path_factory.mktemp("pictures")
    (top / "sub" / "deeper").mkdir(parents=True)
    (top / ".hidden").mkdir()
    names = ("b.png", "a.PNG", "sub/0.jpg", "sub/deeper/0.bmp", "sub/deeper/z.webp")
    for name, picture in zip(names, pixels(COUNT), strict=True):
        Image.fromarray(picture).save(top / name)
    for name in ("notes.txt", ".b.png", ".hidden/c.png"):
        (top / name).write_bytes(b"no picture")
    return top


def picture(path: Path, seed: int = 0) -> Path:
    Image.fromarray(pixels(1, seed)[0]).save(path)
    return path


def errors(frames: list[Frame]) -> list[str]:
    return [type(frame.error).__name__ if frame.error else "" for frame in frames]


# -- folders -----------------------------------------------------------------------------------


def test_a_folder_is_answered_in_order_as_picture_by_picture(first: Runner, folder: Path) -> None:
    frames = list(stream(first, folder))
    names = [Path(frame.source).relative_to(folder).as_posix() for frame in frames]
    assert names == ["a.PNG", "b.png", "sub/0.jpg", "sub/deeper/0.bmp", "sub/deeper/z.webp"]
    assert [frame.index for frame in frames] == list(range(COUNT))
    for frame in frames:
        assert frame.prediction is not None
        assert (frame.at_s, frame.error) == (None, None)
        assert same(frame.prediction.logits, first.run(frame.source).logits)


@given(every=st.integers(1, 7), limit=st.none() | st.integers(1, 7))
def test_every_and_limit_choose_as_slices_do(
    every: int, limit: int | None, first: Runner, folder: Path
) -> None:
    frames = stream(first, folder, every=every, limit=limit)
    assert [frame.index for frame in frames] == list(range(COUNT))[::every][:limit]


def test_a_broken_picture_is_a_frame_and_the_stream_goes_on(first: Runner, tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.jpg").write_bytes(b"")
    picture(tmp_path / "d.png")
    frames = list(stream(first, tmp_path))
    assert errors(frames) == ["", "DataError", "DataError", ""]
    assert frames[1].prediction is None
    assert "b.png" in str(frames[1].error)


@pytest.mark.parametrize("side", [9000, 60000])
def test_a_decompression_bomb_among_pictures_is_refused_alone(
    side: int, first: Runner, tmp_path: Path
) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = picture(tmp_path / "b.png").read_bytes()
    crc = struct.pack(">I", zlib.crc32(head))
    (tmp_path / "a.png").write_bytes(data[:12] + head + crc + data[33:])
    frames = list(stream(first, tmp_path))
    assert errors(frames) == ["DataError", ""]
    assert "a.png" in str(frames[0].error)
    assert "pixels" in str(frames[0].error)


def test_a_link_out_of_the_folder_is_not_followed(first: Runner, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    secret = picture(tmp_path / "secret.png")
    inside = picture(tmp_path / "inside" / "a.png")
    (tmp_path / "inside" / "b.png").symlink_to(secret)
    (tmp_path / "inside" / "c.png").symlink_to(inside)
    (tmp_path / "inside" / "d").symlink_to(tmp_path)
    frames = list(stream(first, tmp_path / "inside"))
    assert errors(frames) == ["", "DataError", ""]
    assert "links out of the folder" in str(frames[1].error)


# -- single pictures and videos ----------------------------------------------------------------


def test_a_picture_is_a_stream_of_one(first: Runner, tmp_path: Path) -> None:
    (frame,) = stream(first, picture(tmp_path / "a.png").rename(tmp_path / "no suffix"))
    assert frame.prediction is not None
    (tmp_path / "a.txt").write_text("no picture")
    (frame,) = stream(first, str(tmp_path / "a.txt"))
    assert isinstance(frame.error, DataError)


def test_a_video_is_answered_frame_by_frame(first: Runner, tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", noise(6))
    frames = list(stream(first, path, every=2))
    assert [(frame.source, frame.index) for frame in frames] == [(str(path), i) for i in (0, 2, 4)]
    assert [frame.at_s for frame in frames] == pytest.approx([0.0, 0.2, 0.4])
    for frame, still in zip(frames, video.video(path, 2), strict=True):
        assert frame.prediction is not None
        assert same(frame.prediction.logits, first.run(still.pixels).logits)


def test_a_folder_with_a_videos_suffix_is_a_folder(first: Runner, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    picture(tmp_path / "a.mp4" / "a.png")
    (frame,) = stream(first, tmp_path / "a.mp4")
    assert frame.prediction is not None


def test_closing_a_stream_lets_go_of_the_video(first: Runner, tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", noise(9))
    frames = stream(first, path)
    next(frames)
    assert open_files(path) == 1
    frames.close()
    assert open_files(path) == 0


def test_a_limit_lets_go_of_the_video(first: Runner, tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", noise(9))
    assert len(list(stream(first, path, limit=2))) == 2
    assert open_files(path) == 0


# -- what the runner says ----------------------------------------------------------------------


def test_the_domain_stays_the_one_of_the_beginning(
    runner: Runner, fleet: Fleet, folder: Path
) -> None:
    begun = runner.load(fleet["first"].bundle)
    frames = stream(runner, folder)
    next(frames)
    runner.load(fleet["next"].bundle, name="another")
    assert {frame.prediction.domain for frame in frames if frame.prediction} == {begun.name}


def test_a_stream_ends_with_its_domain_or_its_runner(
    runner: Runner, fleet: Fleet, folder: Path
) -> None:
    ends: list[tuple[str, Callable[[], None], type[Exception]]] = [
        ("a", lambda: runner.unload("a"), UnknownNameError),
        ("b", runner.close, ClosedError),
    ]
    for name, end, error in ends:
        runner.load(fleet["first"].bundle, name=name)
        frames = stream(runner, folder, name)
        next(frames)
        end()
        with pytest.raises(error):
            next(frames)


def test_a_frame_that_takes_too_long_does_not_end_the_stream(first: Runner, folder: Path) -> None:
    frames = list(stream(first, folder, time_limit_s=1e-6))
    assert [frame.index for frame in frames] == list(range(COUNT))
    for frame in frames:
        assert (frame.prediction is None) == isinstance(frame.error, TimeLimitError)


# -- requests that cannot be meant --------------------------------------------------------------


def test_counts_below_one_are_refused_at_once(first: Runner, folder: Path) -> None:
    with pytest.raises(UsageError, match="every: expected 1 or more, got 0"):
        stream(first, folder, every=0)
    with pytest.raises(UsageError, match="limit: expected 1 or more, got -1"):
        stream(first, folder, limit=-1)


@pytest.mark.parametrize("source", ["camera:", "camera:one", "camera:-1", "camera:99999", -1])
def test_a_camera_that_is_no_number_is_refused_at_once(first: Runner, source: str | int) -> None:
    with pytest.raises(UsageError, match="expected a camera's number"):
        stream(first, source)


def test_pixels_are_handed_over_as_rgb(first: Runner, tmp_path: Path) -> None:
    """A wrong channel order would change the answer of a red picture."""
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    path = write(tmp_path / "a.avi", [red])
    (frame,) = stream(first, path)
    assert frame.prediction is not None
    right, wrong = (first.run(each).logits for each in (red, red[..., ::-1].copy()))
    distance = [float(np.abs(frame.prediction.logits - one).max()) for one in (right, wrong)]
    assert distance[0] < distance[1] / 4
