"""Lines of real build logs, and what they mean."""

from __future__ import annotations

from threading import Thread

import pytest

from toolchain.core.files import MIB
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.log import (
    LIMIT_CHARACTERS,
    LIMIT_LINES,
    Journal,
    Messages,
    SkippedTactic,
)

# One wording per generation, as public logs have them.
IN_MIB = (
    "Skipping tactic 3 due to insuficient memory on requested size of 449 detected for tactic 4.\n"
    "Try decreasing the workspace size with IBuilderConfig::setMaxWorkspaceSize()."
)
POOLED = (
    "Skipping tactic 3 due to insufficient memory on requested size of 9385 detected for tactic "
    "0x0000000000000004.\nTry decreasing the workspace size with "
    "IBuilderConfig::setMemoryPoolLimit()."
)
IN_BYTES = (
    "UNSUPPORTED_STATESkipping tactic 4 due to insufficient memory on requested size of 66048 "
    "detected for tactic 0x000000000000001f."
)
LATER = (
    "UNSUPPORTED_STATE: Skipping tactic 33 due to insufficient memory on requested size of "
    "629145600 detected for tactic 0xa5a46bfbd719d757."
)


def said(*lines: tuple[str, str]) -> Messages:
    messages = Messages()
    for severity, text in lines:
        messages.take(severity, text)
    return messages


@pytest.mark.parametrize(
    ("line", "nbytes"),
    [(IN_MIB, 449 * MIB), (POOLED, 9385 * MIB), (IN_BYTES, 66048), (LATER, 629145600)],
    ids=["8.0", "8.5", "9.2", "10.3"],
)
def test_skipped_tactics(line: str, nbytes: int) -> None:
    messages = said(("WARNING", line))
    assert messages.skipped == [SkippedTactic("", nbytes)]
    assert messages.short_of_memory


@pytest.mark.parametrize(
    ("line", "layer"),
    [
        ("--------------- Timing Runner: prob (CudaSoftMax)", "prob"),
        ("--- Timing Runner: conv1 + relu1 (CaskConvolution[0x80000009])", "conv1 + relu1"),
        ("--- Timing Runner: {ForeignNode[a.../b]} (Myelin[0x80000023])", "{ForeignNode[a.../b]}"),
        ("Autotuning op matMul1(key: 0x1814870c44ff0f8574df6e3dda04cbd7):", "matMul1"),
    ],
)  # fmt: skip
def test_a_skipped_tactic_is_of_the_layer_timed_last(line: str, layer: str) -> None:
    messages = said(("VERBOSE", line), ("WARNING", LATER))
    assert messages.skipped == [SkippedTactic(layer, 629145600)]


@pytest.mark.parametrize(
    ("severity", "line"),
    [
        (
            "ERROR",
            "Tactic Device request: 2304MB Available: 1536MB. "
            "Device memory is insufficient to use tactic.",
        ),
        ("WARNING", "Requested amount of GPU memory (2833252352 bytes) could not be allocated."),
        (
            "ERROR",
            "[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory "
            "(Requested size was 2833252352 bytes.)",
        ),
        ("ERROR", "Error Code 1: Cuda Runtime (out of memory)"),
        (
            "ERROR",
            "Could not find any implementation for node {ForeignNode[853...Softmax_136]} due to "
            "insufficient workspace. See verbose log for requested sizes.",
        ),
    ],
)
def test_lines_about_memory(severity: str, line: str) -> None:
    messages = said((severity, line))
    assert messages.memory == [line]
    assert messages.short_of_memory


@pytest.mark.parametrize(
    "line",
    ["Could not find any implementation for node v1.", "Total Activation Memory: 8471552 bytes"],
)
def test_other_lines_are_not_about_memory(line: str) -> None:
    assert not said(("ERROR", line)).short_of_memory


def test_first_error_is_one_line() -> None:
    assert said().first == ""
    assert said(("WARNING", "no"), ("ERROR", "a\n  b"), ("INTERNAL_ERROR", "c")).first == "a b"


def test_what_is_kept_is_bounded() -> None:
    messages = Messages()
    for _ in range(3 * LIMIT_LINES):
        messages.take("ERROR", "x" * (2 * LIMIT_CHARACTERS))
        messages.take("WARNING", LATER)
        for _ in range(3):
            messages.take("VERBOSE", "y")
    assert len(messages.errors) == len(messages.warnings) == LIMIT_LINES
    assert max(map(len, messages.errors)) == LIMIT_CHARACTERS
    assert len(messages.skipped) == 3 * LIMIT_LINES
    assert messages.dropped == 4 * LIMIT_LINES


def test_only_those_who_watch_hear() -> None:
    journal = Journal()
    journal.take("ERROR", "before")
    with journal.watch() as outer:
        journal.take("ERROR", "one")
        with journal.watch() as inner:
            journal.take("ERROR", "two")
        journal.take("ERROR", "three")
    journal.take("ERROR", "after")
    assert (outer.errors, inner.errors) == (["one", "two", "three"], ["two"])


def test_one_watcher_goes_and_its_like_stays() -> None:
    journal = Journal()
    with journal.watch() as outer:
        with journal.watch():
            pass
        journal.take("ERROR", "one")
    assert outer.errors == ["one"]


def test_threads_may_log() -> None:
    journal = Journal()

    def talk() -> None:
        for _ in range(20):
            journal.take("WARNING", "w")

    with journal.watch() as heard:
        threads = [Thread(target=talk) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(heard.warnings) == 160


def test_the_real_module_writes_to_the_journal(rtx: TensorRT) -> None:
    builder = rtx.module.Builder(rtx.logger)
    network = builder.create_network(0)
    with rtx.journal.watch() as heard:
        assert not rtx.module.OnnxParser(network, rtx.logger).parse(b"no model")
    assert "Failed to parse the ONNX model" in heard.first
