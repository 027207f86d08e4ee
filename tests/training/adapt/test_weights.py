"""Reading backbone weights: what is checked before a tensor is used."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from toolchain.core import digest
from toolchain.core.errors import StorageError, UnknownNameError, UsageError, WeightsError
from toolchain.training.adapt import backbones
from toolchain.training.adapt.backbones import Backbone
from toolchain.training.adapt.weights import load_backbone

State = Mapping[str, Tensor]
Saver = Callable[..., Path]


@pytest.fixture(scope="module")
def state() -> State:
    """Return weights of a resnet20 that nobody ships."""
    return load_backbone("resnet20", untrained_seed=5).state_dict()


@pytest.fixture
def saved(state: State, tmp_path: Path) -> Saver:
    """Return a function that saves the state with some tensors replaced (None: left out)."""

    def save(suffix: str = ".safetensors", **replaced: Tensor | None) -> Path:
        path = tmp_path / f"weights{suffix}"
        merged = {**state, **{name.replace("__", "."): t for name, t in replaced.items()}}
        tensors = {name: t.clone() for name, t in merged.items() if t is not None}
        save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
        return path

    return save


def same(model: nn.Module, state: State) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_round_trip(saved: Saver, state: State, suffix: str) -> None:
    """Law: what was saved is what is loaded, bit for bit, in eval mode."""
    path = saved(suffix)
    sha256 = digest.sha256(path.read_bytes())
    model = load_backbone("resnet20", weights=path, sha256=sha256)
    assert same(model, state)
    assert not any(module.training for module in model.modules())
    assert same(load_backbone("resnet20", weights=path, sha256=sha256[7:].upper()), state)


def test_shipped_weights_load_and_are_small() -> None:
    model = load_backbone("resnet20")
    assert model.get_parameter("fc.weight").abs().sum() > 0
    assert sum(t.nbytes for t in model.state_dict().values()) < 2_000_000
    assert backbones.get("resnet20").weights_sha256 is not None


@pytest.mark.parametrize("name", ["resnet26", "resnet50", "mobilenet_v2"])
def test_without_weights_nothing_is_random(name: str) -> None:
    with pytest.raises(WeightsError, match=r"(?s)got none.*fix: give a"):
        load_backbone(name)


def test_untrained_is_a_function_of_the_seed_and_disturbs_nothing(state: State) -> None:
    """Law: one seed, one model; the global random state is untouched."""
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert same(load_backbone("resnet20", untrained_seed=5), state)
    assert not same(load_backbone("resnet20", untrained_seed=6), state)
    load_backbone("resnet20")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("options", [{"weights": "x.pth"}, {"sha256": "0" * 64}])
def test_a_seed_beside_weights_is_a_contradiction(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="got both"):
        load_backbone("resnet20", untrained_seed=0, **options)


def test_a_digest_without_its_file_is_refused() -> None:
    with pytest.raises(UsageError, match="sha256 alone"):
        load_backbone("resnet20", sha256="0" * 64)


def test_unknown_backbone() -> None:
    with pytest.raises(UnknownNameError, match="resnet20"):
        load_backbone("resnet2")


def test_wrong_digest_shows_both(saved: Saver) -> None:
    path = saved()
    with pytest.raises(WeightsError) as caught:
        load_backbone("resnet20", weights=path, sha256="0" * 64)
    assert "sha256:" + "0" * 64 in str(caught.value)
    assert digest.sha256(path.read_bytes()) in str(caught.value)


def test_all_faults_are_told_at_once(saved: Saver) -> None:
    path = saved(
        bn1__weight=None,
        surplus=torch.zeros(1),
        conv1__weight=torch.zeros(16, 3, 5, 5),
        bn1__bias=torch.zeros(16, dtype=torch.int32),
        layer1__0__bn1__bias=torch.full((16,), torch.nan),
    )
    with pytest.raises(WeightsError) as caught:
        load_backbone("resnet20", weights=path)
    text = str(caught.value)
    assert "missing: bn1.weight" in text
    assert "extra: surplus" in text
    assert "conv1.weight (expected [16, 3, 3, 3], got [16, 3, 5, 5])" in text
    assert "bn1.bias (expected torch.float32, got torch.int32)" in text
    assert "not finite (NaN or Inf): layer1.0.bn1.bias" in text


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_one_number_that_is_not_finite_is_found(saved: Saver, state: State, value: float) -> None:
    weight = state["layer3.2.conv2.weight"].clone()
    weight[63, 63, 2, 2] = value
    with pytest.raises(WeightsError, match=r"NaN or Inf\): layer3\.2\.conv2\.weight"):
        load_backbone("resnet20", weights=saved(layer3__2__conv2__weight=weight))


def test_many_faults_are_counted_not_listed(saved: Saver) -> None:
    extra = {f"surplus{index:02d}": torch.zeros(1) for index in range(20)}
    with pytest.raises(WeightsError, match=r"surplus07, and 12 more"):
        load_backbone("resnet20", weights=saved(**extra))


def test_the_class_count_is_the_files(saved: Saver) -> None:
    path = saved(fc__weight=torch.ones(196, 64), fc__bias=torch.ones(196))
    model = load_backbone("resnet20", weights=path)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 196)
    assert model.get_parameter("fc.weight").eq(1).all()
    assert not model.get_submodule("fc").training


def test_a_file_without_a_classifier_gets_a_fix_that_works(
    saved: Saver, state: State, tmp_path: Path
) -> None:
    """Self-supervised training leaves none, and timm with num_classes=0."""
    path = saved(".pth", fc__weight=None, fc__bias=None)
    with pytest.raises(WeightsError, match=r"missing: fc\.bias, fc\.weight") as caught:
        load_backbone("resnet20", weights=path)
    command = caught.value.fix.partition("zeros will do: ")[2]
    place = str(tmp_path / "whole.pth")
    exec(  # what a reader would type
        command.replace("'weights.pth'", repr(place)),
        {"torch": torch, "state_dict": torch.load(path)},
    )
    model = load_backbone("resnet20", weights=Path(place))
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
    with pytest.raises(WeightsError, match="missing") as caught:
        load_backbone("resnet20", weights=saved(".pth", fc__weight=None, conv1__weight=None))
    assert "zeros will do" not in caught.value.fix


def test_a_classifier_of_another_width_is_a_fault(saved: Saver) -> None:
    with pytest.raises(WeightsError, match=r"fc\.weight \(expected \[64, 64\], got \[10, 32\]\)"):
        load_backbone("resnet20", weights=saved(fc__weight=torch.ones(10, 32)))


def test_batch_counters_may_be_absent(saved: Saver, state: State) -> None:
    absent = {name.replace(".", "__"): None for name in state if name.endswith("batches_tracked")}
    assert len(absent) == 21
    assert same(load_backbone("resnet20", weights=saved(**absent)), state)


def test_half_precision_is_widened(saved: Saver, state: State) -> None:
    half = state["conv1.weight"].half()
    model = load_backbone("resnet20", weights=saved(conv1__weight=half))
    widened = model.get_parameter("conv1.weight")
    assert widened.dtype == torch.float32
    assert torch.equal(widened, half.float())


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_training_checkpoint_is_unwrapped(state: State, tmp_path: Path, wrapper: str) -> None:
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "c.pth")
    assert same(load_backbone("resnet20", weights=tmp_path / "c.pth"), state)


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, torch.zeros(2)])
def test_a_pickle_that_is_no_state_dict(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="expected a state dict"):
        load_backbone("resnet20", weights=tmp_path / "c.pth")


class Bomb:
    """A pickle that would run code when read without ``weights_only``."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("code from the file ran",))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_code_and_noise_are_refused(tmp_path: Path, suffix: str) -> None:
    for index, data in enumerate([b"", b"\x80", b"noise" * 99, pickle.dumps(Bomb(), 2)]):
        path = tmp_path / f"{index}{suffix}"
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"expected a readable \.\w+ file"):
            load_backbone("resnet20", weights=path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(saved: Saver, suffix: str) -> None:
    path = saved(suffix)
    whole = path.read_bytes()
    for share in (0.01, 0.5, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(WeightsError, match="expected a readable"):
            load_backbone("resnet20", weights=path)


def test_absent_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere\.pth"):
        load_backbone("resnet20", weights=tmp_path / "nowhere.pth")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"got '\.onnx'"):
        load_backbone("resnet20", weights=tmp_path / "w.onnx")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_refused_pickle_gets_our_words_and_no_warning(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "bomb.pth"
    path.write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(WeightsError, match="expected a readable") as caught:
        load_backbone("resnet20", weights=path)
    assert "weights_only" not in str(caught.value)


def test_a_negative_variance_is_named(saved: Saver, state: State) -> None:
    broken = -state["bn1.running_var"]
    with pytest.raises(WeightsError, match=r"negative variance: bn1\.running_var"):
        load_backbone("resnet20", weights=saved(bn1__running_var=broken))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # PyTorch will drop them
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to_sparse(),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: t.to("meta"),
    ],
)
def test_a_tensor_of_another_layout_is_named(
    change: Callable[[Tensor], Tensor], state: State, tmp_path: Path
) -> None:
    """Pruning, quantisation and deferred loading leave such tensors in checkpoints."""
    torch.save({**state, "fc.weight": change(state["fc.weight"])}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"sparse, quantised or without values: fc\.weight"):
        load_backbone("resnet20", weights=tmp_path / "w.pth")


def test_a_package_with_a_lazy_layer_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    own = Backbone(
        name="lazy", title="x", build=lambda: net, input_size=8, classifier="1", licence="x",
        source="x",
    )  # fmt: skip
    monkeypatch.setattr(backbones, "get", lambda _: own)
    monkeypatch.setattr(backbones, "publisher", lambda _: "a test")
    with pytest.raises(WeightsError, match=r"lazy ones: 1\.weight") as caught:
        load_backbone("lazy", untrained_seed=0)
    assert "run the net once in build()" in caught.value.fix


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"\n<!DOCTYPE html><html>Quota exceeded</html>", "a page of HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    ],
)
def test_what_a_failed_download_left_is_called_so(
    text: bytes, what: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(text)
    with pytest.raises(WeightsError, match=what):
        load_backbone("resnet20", weights=path)
