"""Logs: what the checkpoint says of each epoch, in three forms that others read."""

from __future__ import annotations

import csv
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from tests.support import stripes
from tests.training.loop.test_training import Recorder, press_ctrl_c
from toolchain.core.errors import StorageError, TrainingError
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.adapt.checkpoint import EpochFigures
from toolchain.training.loop import events
from toolchain.training.loop.curve import curve
from toolchain.training.loop.logs import EVENTS, PICTURE, TABLE
from toolchain.training.loop.training import TrainReport, train

RECIPE = stripes.recipe(epochs=3, validation=0.2)


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / TABLE).read_text().splitlines()))


DOUBLE, FLOAT, INT64, STRING, MESSAGE = 1, 2, 3, 9, 11


def event_class() -> type:
    """TensorFlow's message Event, as far as scalars need it, from protobuf's own library."""
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t")
    for name, *fields in (
        ("Value", ("tag", 1, STRING, 1), ("simple_value", 2, FLOAT, 1)),
        ("Summary", ("value", 1, MESSAGE, 3, ".t.Value")),
        (
            "Event",
            ("wall_time", 1, DOUBLE, 1),
            ("step", 2, INT64, 1),
            ("file_version", 3, STRING, 1),
            ("summary", 5, MESSAGE, 1, ".t.Summary"),
        ),
    ):
        message = file.message_type.add(name=name)
        for field, number, kind, label, *inner in fields:
            item = message.field.add(name=field, number=number, type=kind, label=label)
            if inner:
                item.type_name = inner[0]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    event: type = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))
    return event


def read(data: bytes) -> list[object]:
    """Every event of a file; each checksum is compared."""
    records = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == events._checksum(data[:8])
        body = data[12 : 12 + length]
        assert data[12 + length : 16 + length] == events._checksum(body)
        records.append(event_class().FromString(body))  # type: ignore[attr-defined]
        data = data[16 + length :]
    return records


def test_the_checksum_is_that_of_the_standard() -> None:
    """RFC 3720, appendix B.4: 32 zeros and 32 rising bytes; the check value of nine digits."""
    assert events.crc32c(b"123456789") == 0xE3069283
    assert events.crc32c(bytes(32)) == 0x8A9136AA
    assert events.crc32c(bytes(range(32))) == 0x46DD794E


@given(
    st.dictionaries(st.text(max_size=200), st.floats(width=32, allow_nan=False), max_size=20),
    st.integers(0, 2**40),
)
def test_protobufs_own_reader_reads_the_scalars(values: dict[str, float], step: int) -> None:
    """Law: what is written is what a second implementation reads."""
    head, event = read(events.header(5.0) + events.scalars(6.5, step, values))
    assert (head.wall_time, head.file_version) == (5.0, "brain.Event:2")  # type: ignore[attr-defined]
    assert (event.wall_time, event.step) == (6.5, step)  # type: ignore[attr-defined]
    assert {v.tag: v.simple_value for v in event.summary.value} == values  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport]:
    folder = tmp_path_factory.mktemp("log")
    report = train(
        stripes.model(), stripes.data(), RECIPE, out=folder / "out", log=folder / "deep" / "log"
    )
    return folder / "deep" / "log", report


def test_the_table_has_what_the_checkpoint_says(logged: tuple[Path, TrainReport]) -> None:
    folder, report = logged
    rows = table(folder)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row, figures in zip(rows, report.history.epochs, strict=True):
        assert float(row["loss"]) == figures.loss
        assert float(row["validation_accuracy"]) == figures.validation_accuracy


def test_the_events_have_it_too(logged: tuple[Path, TrainReport]) -> None:
    folder, report = logged
    (path,) = folder.glob(f"{EVENTS}.*")
    _, *records = read(path.read_bytes())
    assert [event.step for event in records] == [1, 2, 3]  # type: ignore[attr-defined]
    last = {v.tag: v.simple_value for v in records[-1].summary.value}  # type: ignore[attr-defined]
    assert last["loss/train"] == pytest.approx(report.history.epochs[-1].loss)
    assert len(last) == 8


def test_the_picture_has_a_line_for_each_curve(logged: tuple[Path, TrainReport]) -> None:
    folder, report = logged
    tree = ElementTree.parse(folder / PICTURE)
    lines = tree.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3, 3, 3]
    heights = [float(p.split(",")[1]) for p in lines[2].attrib["points"].split()]
    shares = [figures.accuracy for figures in report.history.epochs]
    assert sorted(heights, reverse=True) == [heights[shares.index(s)] for s in sorted(shares)]


def test_a_resumed_training_has_the_whole_table(tmp_path: Path) -> None:
    def go(model: AttachedModel, **options: Any) -> TrainReport:
        out, log = tmp_path / "out", tmp_path / "log"
        return train(model, stripes.data(), RECIPE, out=out, log=log, **options)

    with pytest.raises(TrainingError, match="stopped"):
        go(stripes.model(), progress=Recorder(6, press_ctrl_c))
    report = go(stripes.model(), resume=True)
    rows = table(tmp_path / "log")
    assert [float(row["loss"]) for row in rows] == [e.loss for e in report.history.epochs]
    assert len(list((tmp_path / "log").glob(f"{EVENTS}.*"))) == 2


def test_a_curve_of_one_epoch_without_validation_is_drawn() -> None:
    text = curve([EpochFigures(lr=0.1, loss=0.0, accuracy=1.0, executed_share=1.0)], None)
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "nan" not in text


def test_a_log_that_cannot_be_written_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    with pytest.raises(StorageError):
        train(
            stripes.model(),
            stripes.data(),
            RECIPE,
            out=tmp_path / "out",
            log=tmp_path / "file" / "log",
            progress=recorder,
        )
    assert not recorder.steps
