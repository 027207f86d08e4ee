"""``da3 run`` on pictures, folders and videos: what is printed, what fails, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.support.drawn import pixels
from tests.support.exported import Exported, Fleet
from tests.support.videos import noise, write
from toolchain.cli.verbs.run import run
from toolchain.device import Runner

NAME = "toy_chirps"
KEYS = {"source", "index", "at_s", "label", "probability", "top", "gates", "ms", "error"}


@pytest.fixture(scope="module")
def home(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: ``dist``, three pictures, one broken, and a video; nobody changes it."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(exported.bundle.parent, home / "dist")
    (home / "photos").mkdir()
    for index, picture in enumerate(pixels(3)):
        Image.fromarray(picture).save(home / "photos" / f"{index}.png")
    (home / "broken.png").write_bytes((home / "photos" / "0.png").read_bytes()[:-40])
    write(home / "clip.avi", noise(6))
    return home


def invoke(home: Path, *words: str) -> Result:
    with chdir(home):
        return CliRunner().invoke(run, words, prog_name="da3 run")


def answered(home: Path, *words: str) -> dict[str, Any]:
    result = invoke(home, "--domain", NAME, *words, "--json")
    assert result.exit_code == 0, result.stdout
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_a_picture_for_people(home: Path) -> None:
    result = invoke(home, "--domain", NAME, "photos/0.png")
    assert (result.exit_code, result.stderr) == (0, "")
    title, *classes, last = result.stdout.splitlines()
    assert title == "photos/0.png"
    assert len(classes) == 3
    shares = [float(line.split("%")[0].split()[-1]) for line in classes]
    assert shares == sorted(shares, reverse=True)
    assert last.startswith("  gates ")
    assert " of 2 open  " in last
    assert last.endswith(" ms")


def test_json_is_one_document_with_what_the_library_says(home: Path, exported: Exported) -> None:
    document = answered(home, "photos", "--top", "2")
    assert set(document) == {"domain", "release", "backbone", "pictures"}
    assert (document["domain"], document["backbone"]) == (NAME, "toy")
    with Runner(exported.backbone) as runner:
        assert document["release"] == runner.load(exported.bundle).release
        for index, one in enumerate(document["pictures"]):
            right = runner.run(home / "photos" / f"{index}.png")
            assert set(one) == KEYS
            assert one["source"] == f"photos/{index}.png"
            assert (one["index"], one["at_s"], one["error"]) == (index, None, None)
            assert (one["label"], one["gates"]) == (right.label, right.gates)
            assert one["probability"] == right.probability
            assert one["top"][0] == {
                "class": right.index,
                "label": right.label,
                "probability": right.probability,
            }
            assert len(one["top"]) == 2


def test_jsonl_is_one_line_per_picture(home: Path) -> None:
    result = invoke(home, "--domain", NAME, "photos", "broken.png", "clip.avi", "--jsonl")
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(set(line) == KEYS for line in lines)
    assert [line["index"] for line in lines] == [0, 1, 2, 0, 0, 1, 2, 3, 4, 5]
    assert [line["error"] is None for line in lines] == [True] * 3 + [False] + [True] * 6


def test_a_picture_that_fails_is_told_and_the_others_are_answered(home: Path) -> None:
    words = ("photos/0.png", "missing.png", "broken.png", "clip.mp4", "photos/1.png")
    result = invoke(home, "--domain", NAME, *words)
    assert result.exit_code == 1
    assert result.stdout.count("gates") == 2
    for name in ("missing.png", "broken.png", "clip.mp4"):
        assert f"error: {name}: " in result.stderr
    assert result.stderr.count("fix: ") == 3
    document = json.loads(invoke(home, "--domain", NAME, *words, "--json").stdout)
    kinds = [one["error"] and one["error"]["type"] for one in document["pictures"]]
    assert kinds == [None, "DataError", "DataError", "DataError", None]
    assert all(set(one) == KEYS for one in document["pictures"])


def test_a_frame_of_a_video_is_named_by_number_and_time(home: Path) -> None:
    result = invoke(home, "--domain", NAME, "clip.avi", "--every", "4")
    titles = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert titles == ["clip.avi  frame 0  0.00 s", "clip.avi  frame 4  0.40 s"]


def test_a_limit_counts_over_all_sources(home: Path) -> None:
    document = answered(home, "photos", "clip.avi", "--limit", "4")
    assert [one["source"] for one in document["pictures"]][-2:] == ["photos/2.png", "clip.avi"]
    assert len(document["pictures"]) == 4


def test_one_jsonl_line_for_a_time_limit_that_is_over_or_not(home: Path) -> None:
    result = invoke(home, "--domain", NAME, "photos", "--jsonl", "--time-limit", "0.000001")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = {line["error"]["type"] for line in lines if line["error"]}
    assert len(lines) == 3
    assert kinds <= {"TimeLimitError"}
    assert result.exit_code == bool(kinds)


@pytest.mark.parametrize(
    "words",
    [
        ["--flavour", "static"],
        ["--form", "rows"],
        ["--threads", "2", "--sessions", "2", "--provider", "cpu", "--no-selftest"],
    ],
)
def test_options_of_the_runner_give_the_same_answer(home: Path, words: list[str]) -> None:
    plain, other = (answered(home, "photos", *more)["pictures"] for more in ([], words))
    assert [one["label"] for one in plain] == [one["label"] for one in other]
    assert [one["gates"] for one in plain] == [one["gates"] for one in other]


def test_a_bundle_elsewhere_with_its_backbone_named(
    home: Path, exported: Exported, tmp_path: Path
) -> None:
    alone = shutil.copy(exported.bundle, tmp_path)
    words = ("--bundle", str(alone), "photos/0.png")
    result = invoke(home, *words)
    assert result.exit_code == 1
    assert "--backbone DIR" in result.stderr
    assert invoke(home, *words, "--backbone", "dist").exit_code == 0


def test_a_damaged_bundle_ends_the_command_with_4(home: Path, tmp_path: Path) -> None:
    (tmp_path / "x.da3b").write_bytes(b"no bundle")
    result = invoke(home, "--bundle", str(tmp_path / "x.da3b"), "photos", "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["error"]["type"] == "BundleError"


def test_a_domain_that_is_not_there_lists_those_that_are(home: Path) -> None:
    result = invoke(home, "--domain", "toy_chirp", "photos")
    assert result.exit_code == 2
    assert f"did you mean {NAME}" in result.stderr


def test_a_provider_that_is_not_there(home: Path) -> None:
    result = invoke(home, "--domain", NAME, "photos", "--provider", "tensorrt")
    assert result.exit_code == 1
    assert "ask for cpu" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected IMAGE... or --serve PORT, got neither"),
        (["--serve", "0", "photos"], "expected IMAGE... or --serve, got both"),
        (["photos"], "expected one --domain or --bundle, got 0"),
        (["--domain", "a", "--domain", "b", "photos"], "got 2"),
        (["--domain", "a", "photos", "--host", "::1"], "host: expected with --serve only"),
        (["--domain", "a", "photos", "--json", "--jsonl"], "expected --json or --jsonl, got both"),
        (["--domain", "a", "camera:0", "--json"], "expected --limit N or --jsonl"),
        (["--domain", "a", "photos", "--every", "0"], "0 is not in the range"),
        (["--domain", "a", "photos", "--time-limit", "0"], "0.0 is not in the range"),
        (["--domain", "a", "photos", "--provider", "magic"], "'magic' is not one of"),
    ],
)
def test_options_that_contradict_each_other(home: Path, words: list[str], told: str) -> None:
    result = invoke(home, *words)
    assert result.exit_code == 2
    assert told in result.stderr + result.stdout


def test_a_name_that_would_move_the_cursor_is_shown_escaped(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J.png"
    shutil.copy(home / "photos" / "0.png", path)
    result = invoke(home, "--domain", NAME, str(path), f"{path}.missing")
    assert "\x1b" not in result.stdout + result.stderr
    assert result.stdout.count("gates") == 1


def test_progress_is_counted_on_a_terminal_while_one_document_grows(home: Path) -> None:
    script = "from toolchain.cli.verbs.run import run; run.main(prog_name='da3 run')"
    words = ["--domain", NAME, "photos", "--json"]
    reader, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
    )
    os.close(terminal)
    with os.fdopen(reader, "rb") as screen:
        assert b"\r  3 answered" in screen.read1()
    assert len(json.loads(done.stdout)["pictures"]) == 3


def test_a_domain_without_gates_says_so(fleet: Fleet) -> None:
    bundle = fleet["head"].bundle
    golden = fleet["head"].domain.data.test.batch(range(1))[0][0]
    path = bundle.parent.parent / "one.png"
    Image.fromarray(golden).save(path)
    result = invoke(bundle.parent, "--bundle", str(bundle), str(path))
    assert result.exit_code == 0, result.stderr
    assert "no gates" in result.stdout
