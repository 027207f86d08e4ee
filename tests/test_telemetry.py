"""onnxruntime's telemetry is off in every process of the toolchain, unless the user says otherwise.

It shows by the files that it makes in the user's cache: the device's identity, and what waits to be
sent. A thread of onnxruntime makes them when it likes, and on some machines never. So the case that
proves that such files would be seen is behind the marker ``full``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "ORT_DISABLE_TELEMETRY"

RUN = """
import sys
import time
from pathlib import Path
import toolchain
import onnx
from onnx import TensorProto, helper
from toolchain.device.runtime.ort.session import Session

value = helper.make_tensor_value_info
ports = [value(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
opset = helper.make_opsetid("", 18)
Session(helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString())
# A thread of onnxruntime writes them, and it may start late on a busy machine.
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end and not any(Path.home().rglob("deviceid")):
    time.sleep(0.05)
"""


def files_after(home: Path, setting: str | None, *, seconds: int) -> list[str]:
    """Names of the files below ``home``, which is home and cache, after a session was made.

    ``seconds``: how long the process waits for the device's identity at most.
    """
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
    # Nothing is sent from a test: a proxy that nobody runs takes it.
    environment |= {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    if setting is not None:
        environment[VARIABLE] = setting
    subprocess.run([sys.executable, "-c", RUN, str(seconds)], env=environment, check=True)
    return sorted(path.name for path in home.rglob("*") if path.is_file())


def test_nothing_is_noted_about_the_user(tmp_path: Path) -> None:
    assert files_after(tmp_path, None, seconds=1) == []


@pytest.mark.parametrize(("setting", "expected"), [(None, "1"), ("0", "0"), ("1", "1")])
def test_a_setting_of_the_user_stays(setting: str | None, expected: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    if setting is not None:
        environment[VARIABLE] = setting
    program = f"import os, toolchain; print(os.environ['{VARIABLE}'])"
    printed = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert printed.strip() == expected


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere onnxruntime has other telemetry")
def test_the_files_would_be_seen(tmp_path: Path) -> None:
    assert "deviceid" in files_after(tmp_path, "0", seconds=100)
