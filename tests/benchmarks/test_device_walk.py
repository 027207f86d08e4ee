"""The walk of `make device`, on the toy: it ends in order, and every step is a command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_device_from_its_first_key_to_an_update_that_goes_back(tmp_path: Path) -> None:
    words = ["--dist", "tests/bundles/2", "--domain", "sample", "--folder", str(tmp_path / "walk")]
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.device_walk", *words],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    commands = re.findall(r"^\$ da3 (\w+(?: (?:init|agent|status|verify))?)", ended.stdout, re.M)
    assert commands.count("device agent") == 3
    assert commands[0] == "keys init"
    assert re.search(r"the server: [1-9][0-9]* requests answered, 0 failed", ended.stdout)
    assert "expected the class peak, got" in ended.stderr
    assert re.search(r"ROLLED_BACK .*counter 3", ended.stdout)
    assert "WRONG" not in ended.stdout
