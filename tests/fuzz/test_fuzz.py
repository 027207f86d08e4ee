"""The readers take their seeds, and a short fuzz of them where atheris is installed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.__main__ import NAMES, changed_json
from tests.fuzz.readers import READERS

needs_atheris = pytest.mark.skipif(
    find_spec("atheris") is None, reason="atheris is not installed: pip install atheris"
)


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_takes_its_seeds_and_nothing_much(name: str) -> None:
    reader = READERS[name]
    for data in (*reader.seeds(), b"", b"{}", b"[" * 10_000, b"\xff", bytes(4096)):
        reader.read(data)


@pytest.mark.parametrize("name", ["manifest", "backbone", "metadata"])
def test_json_that_was_changed_is_read_or_refused(name: str) -> None:
    """The same changes as those of the fuzz, without its guidance."""
    reader, drawn = READERS[name], random.Random(0)
    seeds = reader.seeds()
    changed = 0
    for _ in range(150):
        data = changed_json(drawn.choice(seeds), drawn)
        reader.read(data)
        changed += data not in (*seeds, b"")
    assert changed > 50


def test_what_is_no_json_is_left_to_the_fuzzer() -> None:
    assert not any(changed_json(b"no JSON", random.Random(seed)) for seed in range(4))
    assert not any(changed_json(b"7", random.Random(seed)) for seed in range(4))
    assert json.loads(changed_json(b'{"a":[1]}', random.Random(3)) or b"{}") is not None


def fuzz(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@needs_atheris
def test_a_short_fuzz_finds_nothing(tmp_path: Path) -> None:
    ended = fuzz(
        "--reader", "metadata", "--runs", "20000", "--seconds", "2", "--keep", str(tmp_path)
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Done " in ended.stderr
    assert not [*tmp_path.iterdir()]


@needs_atheris
def test_a_reader_that_fails_is_found(tmp_path: Path) -> None:
    """Without this a fuzz that sees nothing would pass."""
    program = (
        "import sys; sys.argv = ['fuzz']\n"
        "from tests.fuzz import __main__ as fuzz, readers\n"
        "def read(data):\n"
        "    if data[:1] != b'{': raise KeyError('not one of ours')\n"
        "readers.READERS['backbone'] = readers.READERS['backbone']._replace(read=read)\n"
        f"from pathlib import Path; fuzz.fuzz('backbone', 100000, 10, Path({str(tmp_path)!r}))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert ended.returncode != 0
    assert b"KeyError" in ended.stdout + ended.stderr
    assert [*tmp_path.iterdir()]
