"""``da3 run --serve`` as a process of its own: it tells its address, answers, and ends in order."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import pytest

from tests.support.exported import Fleet

SCRIPT = "from toolchain.cli.verbs.run import run; run.main(prog_name='da3 run')"


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """``da3 run --serve 0`` with ``words``, in ``folder``; killed in the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "--serve", "0", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def get(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        document: dict[str, object] = json.load(answer)
        return document


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_tells_its_address_answers_and_ends_in_order(
    number: signal.Signals, fleet: Fleet
) -> None:
    with serving(fleet["first"].bundle.parent.parent) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving toy_chirps on http://127.0.0.1:")
        url = line.split()[3].rstrip(";")
        assert get(f"{url}/v2/models/toy_chirps")["name"] == "toy_chirps"
        process.send_signal(number)
        rest, stderr = process.communicate(timeout=60)
    # On a machine that is busy waitress tells that a request waited.
    stderr = "".join(line for line in stderr.splitlines(True) if "queue depth" not in line)
    assert (process.returncode, rest, stderr) == (0, "", "")


def test_as_json_and_with_limits_and_chosen_domains(fleet: Fleet, tmp_path: Path) -> None:
    words = [f"--bundle={fleet[name].bundle}" for name in ("first", "digits")]
    limits = ("--max-body", "1", "--concurrent", "1", "--waiting", "0", "--time-limit", "5")
    with serving(tmp_path, *words, *limits, "--json") as process:
        assert process.stdout is not None
        lines = takewhile(lambda line: line != "}\n", process.stdout)
        document = json.loads("".join(lines) + "}")
        assert document["domains"] == ["toy_chirps", "toy_digits"]
        assert document["backbone"] == "toy"
        assert get(f"{document['url']}/v2/models/toy_digits")["name"] == "toy_digits"
        request = urllib.request.Request(
            f"{document['url']}/v2/models/toy_digits/infer", data=bytes(2**20 + 1)
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        with refused.value as answer:
            assert answer.code == 413
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(("words", "code"), [((), 403), (("--control",), 200)])
def test_beyond_loopback_it_warns_and_nobody_controls_it_unasked(
    fleet: Fleet, words: tuple[str, ...], code: int
) -> None:
    with serving(fleet["first"].bundle.parent.parent, "--host", "0.0.0.0", *words) as process:
        assert process.stdout is not None
        port = process.stdout.readline().split()[3].rstrip(";").rpartition(":")[2]
        unload = f"http://127.0.0.1:{port}/v2/repository/models/toy_chirps/unload"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(unload, data=b"{}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == code
        except urllib.error.HTTPError as refused:
            assert refused.code == code
            refused.close()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert f"warning: http://0.0.0.0:{port} is no address of this machine alone" in stderr


@pytest.mark.parametrize("sessions", [1, 2])
def test_no_odd_bundle_takes_the_others_off(fleet: Fleet, tmp_path: Path, sessions: int) -> None:
    """Sorted first: one that is damaged, one that changes the backbone, one of another backbone."""
    (tmp_path / "a.da3b").write_bytes(b"no bundle")
    (tmp_path / "a (2).da3b").write_bytes(b"no bundle")
    for name, source in (("b", "tuned"), ("c", "foreign"), ("d", "first"), ("e", "digits")):
        (tmp_path / f"{name}.da3b").write_bytes(fleet[source].bundle.read_bytes())
    shutil.copytree(fleet["first"].backbone, tmp_path / fleet["first"].backbone.name)
    with serving(tmp_path, "--dist=.", f"--sessions={sessions}", "--json") as process:
        assert process.stdout is not None
        lines = takewhile(lambda line: line != "}\n", process.stdout)
        document = json.loads("".join(lines) + "}")
        ready = get(f"{document['url']}/v2/health/ready")
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert document["domains"] == ["b", "d", "e"][sessions == 1 :]
    refused = ["a", "a (2)", "b", "c"] if sessions == 1 else ["a", "a (2)", "c"]
    assert sorted(document["not_loaded"]) == refused
    assert ready == {"ready": True, "not_loaded": document["not_loaded"]}
    assert str(tmp_path) not in str(ready)
    for name in refused:
        assert f"not loaded: {name}.da3b: " in stderr
    # One of another backbone was not asked for: a line says that it is there.
    assert len(re.findall(r"^not loaded: c\.da3b: .*--backbone names another$", stderr, re.M)) == 1
    assert "weights_digest: the bundle expects" not in stderr
    assert ("fix: allow it with --sessions 2, or " in stderr) is (sessions == 1)
    cost = r"^b\.da3b: a session of the backbone of its own, \d+ MiB and \d+\.\d s$"
    assert bool(re.search(cost, stderr, re.MULTILINE)) is (sessions == 2)


def test_a_port_that_is_taken(fleet: Fleet) -> None:
    folder = fleet["first"].bundle.parent.parent
    with serving(folder) as process:
        assert process.stdout is not None
        port = process.stdout.readline().split()[3].rstrip(";").rpartition(":")[2]
        with serving(folder, "--serve", port) as second:
            _, stderr = second.communicate(timeout=60)
        assert second.returncode == 1
        assert "choose another port" in stderr


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with serving(tmp_path) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "da3 export --domain NAME" in stderr
