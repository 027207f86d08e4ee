"""One whole quick run of ``da3 bench``, made once for all workers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from tests.support import shared
from tests.support.exported import search_path

DOMAINS, SIDE, CLASSES = 4, 12, 196
WORDS = ("--backbone", "toy", "--input", str(SIDE), "--domains", str(DOMAINS), "--quick")


@dataclass(frozen=True)
class Benched:
    """The run's exit code and texts; ``work``: its folder, with document and page beside it."""

    exit_code: int
    stdout: str
    stderr: str
    work: Path

    @property
    def document(self) -> dict[str, Any]:
        """What the run wrote down, read anew."""
        text = (self.work.parent / "bench.json").read_text()
        document: dict[str, Any] = json.loads(text)
        return document

    @property
    def page(self) -> str:
        return (self.work.parent / "bench.html").read_text()


def invoke(*words: str) -> Result:
    """Run ``da3 bench`` in this process; stdout and stderr are kept apart."""
    from toolchain.cli.verbs.bench import bench

    return CliRunner(env=search_path()).invoke(bench, words, prog_name="da3 bench")


def benched() -> Benched:
    """Return the run, which the first worker makes."""
    work = shared.FOLDER / "bench" / "work"

    def made() -> bytes:
        files = {f"--{kind}": str(work.parent / f"bench.{kind}") for kind in ("json", "html")}
        words = [word for pair in files.items() for word in pair]
        result = invoke(*WORDS, "--work", str(work), *words)
        return json.dumps([result.exit_code, result.stdout, result.stderr]).encode()

    code, stdout, stderr = json.loads(shared.once("bench/said.json", made))
    return Benched(code, stdout, stderr, work)
