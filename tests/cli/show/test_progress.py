"""Progress: drawn in place on a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest

from toolchain.cli.show.layout import bar
from toolchain.cli.show.progress import Bar, Steps, counted, counting, describe
from toolchain.training.loop.progress import Progress, Status


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def status(step: int, *, loss: float = 0.5) -> Status:
    return Status(1 + (step - 1) // 4, 2, step, 8, loss, 0.75, 0.5, 0.6, 65.4)


def run(progress: Progress) -> None:
    for step in range(1, 9):
        progress.step(status(step))
        if step % 4 == 0:
            progress.epoch(status(step))
    progress.close()


def test_a_file_gets_one_line_per_epoch() -> None:
    stream = io.StringIO()
    run(Bar(stream, "cars"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == (
        "cars: epoch 1/2  loss 0.500  training accuracy 75.0%  gates open 50%  executed 60%  "
        "left 1:05"
    )
    assert "\r" not in stream.getvalue()


def test_a_file_gets_a_line_as_a_phase_begins_and_one_every_ten_seconds() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = Bar(stream, "cars", clock=lambda: now[0])
    progress.phase("head", 0, 40)
    for done in range(1, 41):
        now[0] += 1
        progress.phase("head", done, 40)
    progress.phase("steps", 0, 8)
    for step in range(1, 5):
        now[0] += 6
        progress.step(status(step))
    assert [line.partition("  ")[::2] for line in stream.getvalue().splitlines()] == [
        ("cars: fit the head and test it alone: pictures looked at", "0/40"),
        ("cars: fit the head and test it alone: pictures looked at", "10/40"),
        ("cars: fit the head and test it alone: pictures looked at", "20/40"),
        ("cars: fit the head and test it alone: pictures looked at", "30/40"),
        ("cars: fit the head and test it alone: pictures looked at", "40/40"),
        ("cars: train: steps", "0/8"),
        *_kept_steps(2, 4),
    ]


def _kept_steps(*steps: int) -> list[tuple[str, str]]:
    lines = (f"cars: [{bar(step / 8)}] {describe(status(step))}" for step in steps)
    return [line.partition("  ")[::2] for line in lines]


def test_a_terminal_gets_a_bar_that_grows_in_place() -> None:
    stream = Screen()
    run(Bar(stream))
    drawn = stream.getvalue().split("\r")
    assert drawn[1].startswith("[##------------------]")
    assert "[####################]" in drawn[-2]
    assert stream.getvalue().count("\n") == 2


def test_a_shorter_line_covers_the_longer_one_before_it() -> None:
    stream = Screen()
    progress = Bar(stream)
    progress.step(status(1, loss=12345.5))
    progress.step(status(2))
    first, second = stream.getvalue().split("\r")[1:]
    assert len(second) == len(first)


@pytest.mark.parametrize("kind", [io.StringIO, Screen])
def test_a_name_that_colours_the_terminal_is_escaped(kind: type[io.StringIO]) -> None:
    """The lines about pictures name files as their owners named them."""
    stream = kind()
    Bar(stream).keep("left out: a/\x1b[31mred\n.txt")
    assert stream.getvalue().lstrip("\r") == "left out: a/\\x1b[31mred\\n.txt\n"


def test_closing_in_the_middle_ends_the_line() -> None:
    stream = Screen()
    progress = Bar(stream)
    progress.step(status(1))
    progress.close()
    assert stream.getvalue().endswith("\n")


def test_a_file_hears_of_each_step_as_it_begins() -> None:
    stream, now = io.StringIO(), [5.0]
    with pytest.raises(KeyError), Steps(stream, clock=lambda: now[0]) as steps:
        steps("split")
        assert stream.getvalue() == "  split into backbone and domain     at 0.0 s\n"
        now[0] += 2
        steps("board fp16")
        now[0] += 1
        raise KeyError
    assert stream.getvalue().splitlines()[1:] == [
        "  board fp16                         at 2.0 s",
        "  board fp16                            1.0 s  failed",
    ]


def test_a_terminal_sees_how_long_each_step_took() -> None:
    stream, now = Screen(), [5.0]
    with Steps(stream, clock=lambda: now[0]) as steps:
        steps("link")
        now[0] += 2
    assert stream.getvalue().endswith("link every flavour                    2.0 s\n")


def test_a_file_gets_the_steps_of_the_export_for_trial() -> None:
    stream = io.StringIO()
    bar = Bar(stream, "cars", clock=lambda: 0.0)
    bar.phase("trial", 0, 0)
    bar.part("link")
    assert stream.getvalue().splitlines()[1] == (
        "cars: export it untrained, for trial: link every flavour"
    )


def test_what_is_counted_is_said_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for _ in counted(range(25), "of 25 answered"):
        now[0] += 1
    assert capsys.readouterr().err.splitlines() == ["  11 of 25 answered", "  21 of 25 answered"]


def test_a_log_hears_of_a_count_as_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("pictures decoded") as tell:
        for done in range(1, 4):
            tell(done, 3)
    assert capsys.readouterr().err == "  1/3 pictures decoded\n"
