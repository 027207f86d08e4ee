"""Progress: ``Quiet`` writes nothing."""

from __future__ import annotations

import pytest

from toolchain.training.loop.progress import Quiet, Status


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    quiet, status = Quiet(), Status(1, 2, 3, 8, 0.5, 0.75, 0.5, 0.6, 65.4)
    quiet.step(status)
    quiet.epoch(status)
    quiet.close()
    assert capsys.readouterr() == ("", "")
