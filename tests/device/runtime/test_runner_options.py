"""A runner's options: providers that are there or not, values that cannot be meant; and closing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.support.drawn import pixels, tensor
from tests.support.exported import Fleet
from toolchain.core.errors import ClosedError, ProviderError, UnknownNameError, UsageError
from toolchain.device import Runner
from toolchain.device.runtime.ort.session import PROVIDERS


def is_built_with(provider: str) -> bool:
    return PROVIDERS[provider] in onnxruntime.get_available_providers()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_there_answers_as_the_cpu_does(
    artefact: Path, wide_runner: Runner, fleet: Fleet, provider: str
) -> None:
    if not is_built_with(provider):
        pytest.skip("this onnxruntime was built without it")
    with Runner(artefact, provider=provider) as made:
        made.load(fleet["first"].bundle)
        assert made.facts.provider == provider
        outcome, expected = made.infer(tensor(6)), wide_runner.infer(tensor(6), "first")
    assert np.allclose(outcome.logits, expected.logits, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_an_error_and_no_silent_cpu_run(
    artefact: Path, provider: str
) -> None:
    if is_built_with(provider):
        pytest.skip("this onnxruntime has it")
    with pytest.raises(ProviderError, match=rf"provider '{provider}' .*, got .* with cpu"):
        Runner(artefact, provider=provider)


def test_an_unknown_provider_is_told(artefact: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean tensorrt"):
        Runner(artefact, provider="tensort")


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0},
        {"sessions": 0},
        {"max_batch": 0},
        {"threads": -1},
        {"threads": 100_000},
        {"threads": "2"},
        {"threads": 1.5},
        {"threads": True},
        {"flavour": "staged"},
        {"form": "loop"},
    ],
)
def test_options_that_cannot_be_meant_are_refused(artefact: Path, options: Any) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Runner(artefact, **options)


def test_a_closed_runner_refuses_everything(artefact: Path, fleet: Fleet) -> None:
    with Runner(artefact) as made:
        made.load(fleet["first"].bundle)
    calls: list[Any] = [
        lambda: made.run(pixels(1)[0]),
        lambda: made.run(pixels(1)[0], "toy_chirps"),
        lambda: made.run_batch(pixels(2)),
        lambda: made.infer(tensor(1)),
        lambda: made.prepare(pixels(1)),
        lambda: made.load(fleet["first"].bundle),
        lambda: made.replace(fleet["first"].bundle),
        lambda: made.unload("toy_chirps"),
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="the runner is closed"):
            call()
    assert made.domains == {}
    assert made.facts.sessions == 0
    made.close()
