"""What training programs wrap around weights: taken off where plain, asked about where not."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from toolchain.core.errors import WeightsError
from toolchain.training.adapt.weights import load_backbone

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Weights of a resnet20 that nobody ships."""
    return load_backbone("resnet20", untrained_seed=5).state_dict()


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def compiled_inside(state: State) -> State:
    """As torch.compile of one stage leaves it: the shell stands in the middle of a name."""
    return {name.replace("layer2.", "layer2._orig_mod."): t for name, t in state.items()}


def averaged(state: State) -> State:
    """torch.optim.swa_utils.AveragedModel."""
    return {"n_averaged": torch.tensor(7), **under("module.", state)}


WRAPPED: dict[str, tuple[Callable[[State], Any], str]] = {
    "DataParallel": (lambda s: under("module.", s), "'module.'"),
    "torch.compile": (lambda s: under("_orig_mod.", s), "_orig_mod"),
    "both": (lambda s: under("module._orig_mod.", s), "'module.'"),
    "compiled stage": (compiled_inside, "_orig_mod"),
    "FSDP": (lambda s: under("_fsdp_wrapped_module.", s), "_fsdp_wrapped_module"),
    "Lightning": (
        lambda s: {
            "pytorch-lightning_version": "2.5.0",
            "epoch": 3,
            "state_dict": {**under("model.", s), "criterion.weight": torch.ones(3)},
            "hparams_name": "kwargs",
        },
        "left out criterion.weight",
    ),
    "timm's training": (
        lambda s: {"arch": "x", "state_dict": s, "args": argparse.Namespace(lr=0.1)},
        "'state_dict'",
    ),
    "DeiT": (lambda s: {"model": s}, "'model'"),
    "nested": (lambda s: {"model": {"state_dict": under("module.", s)}, "step": 3}, "'model'"),
    "settings": (lambda s: {"params": {"lr": 0.1}, "model_state_dict": s}, "'model_state_dict'"),
    "only the average": (lambda s: {"model_ema": s, "epoch": 3}, "'model_ema'"),
    "AveragedModel": (averaged, "left out n_averaged"),
}


@pytest.mark.parametrize("name", sorted(WRAPPED))
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_what_is_plainly_meant_is_read_and_said(
    state: State, tmp_path: Path, name: str, suffix: str
) -> None:
    wrap, words = WRAPPED[name]
    torch.save(wrap(state), tmp_path / f"w{suffix}")
    lines: list[str] = []
    model = load_backbone("resnet20", weights=tmp_path / f"w{suffix}", notify=lines.append)
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    (line,) = lines
    assert words in line


def test_bare_weights_are_read_in_silence(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    lines: list[str] = []
    load_backbone("resnet20", weights=tmp_path / "w.safetensors", notify=lines.append)
    load_backbone("resnet20", notify=lines.append)
    assert lines == []


def test_a_prefix_is_taken_off_safetensors_too(state: State, tmp_path: Path) -> None:
    save_file(under("backbone.", state), tmp_path / "w.safetensors")
    lines: list[str] = []
    load_backbone("resnet20", weights=tmp_path / "w.safetensors", notify=lines.append)
    assert "'backbone.'" in lines[0]


def follow(fix: str, checkpoint: Any, path: Path) -> None:
    """Do what the fix says: its code reads ``checkpoint`` or ``state`` and saves what is meant."""
    code = fix[fix.index("torch.save(") :].split("'weights.pth')", maxsplit=1)[0] + "PATH)"
    exec(code, {"torch": torch, "checkpoint": checkpoint, "state": checkpoint, "PATH": path})


BOTH: dict[str, Callable[[State, State], Any]] = {
    "timm": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
    "model and ema": lambda raw, ema: {"model": raw, "ema": {"module": ema}, "epoch": 1},
    "one state dict": lambda raw, ema: {**under("model.", raw), **under("ema_model.", ema)},
    "bare beside averaged": lambda raw, ema: {**raw, **under("ema.", ema)},
    "a name of its own": lambda raw, ema: {"state_dict": raw, "SWA-weights": ema},
}


@pytest.mark.parametrize("name", sorted(BOTH))
def test_raw_beside_averaged_weights_are_a_question(
    state: State, tmp_path: Path, name: str
) -> None:
    """Which one is meant nobody can see; whoever does what the fix says gets the averaged ones."""
    ema = {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}
    checkpoint = BOTH[name](state, ema)
    torch.save(checkpoint, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="expected one set of weights, got") as caught:
        load_backbone("resnet20", weights=tmp_path / "w.pth")
    follow(caught.value.fix, checkpoint, tmp_path / "fixed.pth")
    model = load_backbone("resnet20", weights=tmp_path / "fixed.pth")
    assert all(torch.equal(tensor, ema[n]) for n, tensor in model.state_dict().items())


def torch_ema(raw: State) -> Any:
    """torch_ema: the averages are a list, in the order of the parameters."""
    return {"model": raw, "ema": {"decay": 0.9, "shadow_params": list(raw.values())}}


def lit_ema(raw: State) -> Any:
    """Latent diffusion's LitEma: buffers of one module, their names without dots."""
    ema = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in raw.items()}
    return {"state_dict": {**under("model.", raw), **ema}}


@pytest.mark.parametrize("checkpoint", [torch_ema, lit_ema])
def test_averages_that_nobody_can_load_are_a_question_too(
    checkpoint: Callable[[State], Any], state: State, tmp_path: Path
) -> None:
    torch.save(checkpoint(state), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"averaged .*beside") as caught:
        load_backbone("resnet20", weights=tmp_path / "w.pth")
    assert "'ema'" not in caught.value.fix


def test_a_file_of_another_net_lists_its_names_as_they_are(state: State, tmp_path: Path) -> None:
    other = under("module.", {n: t for n, t in state.items() if n != "conv1.weight"})
    torch.save(other, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"extra: module\.bn1\.bias"):
        load_backbone("resnet20", weights=tmp_path / "w.pth")


@pytest.mark.parametrize("value", [{"epoch": 3, "optimizer": {"lr": 0.1}}, {"model": nn.Identity}])
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        load_backbone("resnet20", weights=tmp_path / "w.pth")
    assert caught.value.fix
