"""``python -m tests.fuzz``: a coverage-guided fuzz of every reader of bytes from anybody.

Each reader has a process of its own: atheris ends the process that it runs in. JSON is changed as
JSON half of the time, so that inputs come past the parser. At the end there is a line of figures,
and the exit code is 1 if anything but an error of ours came out; the input is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NAMES = ("manifest", "backbone", "archive", "slots", "metadata")
VALUES: tuple[Any, ...] = (None, True, 0, -1, 1.5, 2**53, 2**60, "", "x", "../x", "\x1b", [], {})
LIMIT_INPUT_BYTES = 64 << 10


def main() -> int:
    """Fuzz what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs, of all readers")
    parser.add_argument("--seconds", type=int, default=3600, help="the most time, of all readers")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="for bad inputs")
    parser.add_argument("--reader", choices=NAMES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reader:
        fuzz(given.reader, given.runs, given.seconds, given.keep)
    given.keep.mkdir(parents=True, exist_ok=True)
    inputs = crashes = 0
    for name in NAMES:
        runs, code = child(name, given.runs // len(NAMES), given.seconds // len(NAMES), given.keep)
        sys.stdout.write(f"{name:10}{runs:>10} inputs  {'crashed' if code else 'no crash'}\n")
        sys.stdout.flush()
        inputs, crashes = inputs + runs, crashes + bool(code)
    sys.stdout.write(f"{'all':10}{inputs:>10} inputs  {crashes} crashes\n")
    return bool(crashes)


def child(name: str, runs: int, seconds: int, keep: Path) -> tuple[int, int]:
    """Fuzz one reader in its process; return how many inputs it read, and its exit code."""
    words = [sys.executable, "-m", "tests.fuzz", "--reader", name, "--keep", str(keep)]
    limits = ["--runs", str(runs), "--seconds", str(seconds)]
    ended = subprocess.run([*words, *limits], check=False, capture_output=True, text=True)
    done = re.search(r"Done (\d+) runs", ended.stderr)
    if ended.returncode:
        sys.stderr.write(ended.stderr[-4000:])
    return int(done[1]) if done else 0, ended.returncode


def fuzz(name: str, runs: int, seconds: int, keep: Path) -> None:
    """Fuzz one reader until this process ends."""
    import atheris

    # What is fuzzed is watched, and therefore imported here.
    with atheris.instrument_imports(include=["toolchain", "tuf.api"]):
        from tests.fuzz.readers import READERS
    reader = READERS[name]

    def changed(data: bytes, max_size: int, seed: int) -> bytes:
        made = changed_json(data, random.Random(seed))
        return made if made and len(made) <= max_size else bytes(atheris.Mutate(data, max_size))

    with TemporaryDirectory() as folder:
        for at, seed in enumerate(reader.seeds()):
            (Path(folder) / str(at)).write_bytes(seed)
        options = [f"-runs={runs}", f"-max_total_time={max(1, seconds)}", "-timeout=20", "-seed=1"]
        options += [f"-max_len={LIMIT_INPUT_BYTES}", f"-artifact_prefix={keep}/{name}-"]
        atheris.Setup([sys.argv[0], *options, folder], reader.read, custom_mutator=changed)
        atheris.Fuzz()


def changed_json(data: bytes, drawn: random.Random) -> bytes:
    """Return JSON with one value in it changed, nothing for what is no JSON, or by chance."""
    if drawn.random() < 0.5:
        return b""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return b""
    places = list(_places(value)) if isinstance(value, dict | list) else []
    if not places:
        return b""
    inside, key = drawn.choice(places)
    match drawn.randrange(4):
        case 0:
            del inside[key]
        case 1:
            inside[key] = drawn.choice(VALUES)
        case 2:
            inside[key] = drawn.choice(places)[0]
        case 3 if isinstance(inside, dict):
            inside[f"{key}x"[:99]] = inside.pop(key)
        case _ if isinstance(inside, list):
            inside.append(inside[key])
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        return b""


def _places(value: Any) -> Any:
    """Yield each container in a value with each of its keys."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in list(inner):
        yield value, key
        if isinstance(one, dict | list):
            yield from _places(one)


if __name__ == "__main__":
    sys.exit(main())
