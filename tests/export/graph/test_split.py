"""From model to halves: the same bytes every time, from the cache or not."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load as safetensors_load
from torch import nn

from tests.support import cases, toys
from tests.support.cases import Made
from toolchain.bundle.linkage import Linkage
from toolchain.core import digest
from toolchain.core.errors import GraphError, SplitError
from toolchain.export.graph import split as split_file
from toolchain.export.graph.cut import cut_model
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.link import link
from toolchain.export.graph.program import trace_program
from toolchain.export.graph.split import PackedHalves, interface, split
from toolchain.export.graph.store import to_bytes
from toolchain.training.adapt.attached import AttachedModel, attach, domain_state

ROOT = Path(__file__).parents[3]
PROGRAM = """
from tests.support import cases
from toolchain.bundle.linkage import STATIC_ROWS, SWAP_IF
from toolchain.core import digest
made = cases.Made(cases.CASES["plain"])
half = made.halves
parts = [half.backbone_graph, half.domain_graph, half.weights_data, half.slots_data,
         made.graph(SWAP_IF), made.graph(STATIC_ROWS)]
print("\\n".join(digest.sha256(part) for part in parts))
"""


def parts(made: PackedHalves) -> tuple[bytes, ...]:
    linked = to_bytes(link(made, Linkage("swap", "rows")))
    return (made.backbone_graph, made.domain_graph, made.weights_data, made.slots_data, linked)


def model(classes: int = toys.CLASSES, seed: int = 0, **options: Any) -> AttachedModel:
    """A single block with its domain scrambled."""
    attached = attach(
        toys.backbone("single"), classes=classes, input_shape=(3, 8, 8), rank=4, **options
    )
    return toys.scrambled(attached, seed)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PackedHalves]:
    """A cache folder with one entry, and what was captured for it."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, split(model(), cache=folder)


def shape(attached: AttachedModel) -> str:
    return interface(attached, trace_program(attached))


def entry(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_bytes_do_not_depend_on_the_process(plain: Made) -> None:
    """Law: the same model gives the same bytes in any process, whatever its hash seed."""
    other = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        # The seed of this process is another: Python draws it.
        env={**os.environ, "PYTHONHASHSEED": "4242", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert other.returncode == 0, other.stderr
    made = plain.halves
    here = [
        made.backbone_graph,
        made.domain_graph,
        made.weights_data,
        made.slots_data,
        plain.graph(Linkage("swap", "if")),
        plain.graph(Linkage("static", "rows")),
    ]
    assert other.stdout.split() == [digest.sha256(part) for part in here]


def test_a_hit_equals_a_miss_byte_for_byte(cache: tuple[Path, PackedHalves]) -> None:
    """Law: what the cache gives is what capturing gives."""
    folder, missed = cache
    hit = split(model(), cache=folder)
    assert (missed.cached, hit.cached) == (False, True)
    assert parts(hit) == parts(missed)
    assert parts(split(model())) == parts(missed)


def test_another_domain_of_the_interface_hits(cache: tuple[Path, PackedHalves]) -> None:
    """A second domain has other values and classes, and no exporter runs for it."""
    folder, missed = cache
    other = model(classes=9, seed=3)
    hit = split(other, cache=folder)
    assert hit.cached
    assert hit.backbone_graph == missed.backbone_graph
    assert hit.weights_data == missed.weights_data
    assert parts(hit) == parts(split(other))


def test_a_hit_needs_no_exporter(
    cache: tuple[Path, PackedHalves], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_file, "translate", None)
    assert split(model(), cache=cache[0]).cached


@pytest.mark.parametrize(
    "name", ["backbone.onnx", "domain.onnx", "weights.safetensors", "index.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_entry_is_captured_again(
    cache: tuple[Path, PackedHalves], name: str, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry whose bytes are not what its index says is never used; it is made anew."""
    folder, missed = cache
    path = entry(folder) / name
    good = path.read_bytes()
    # Capturing is slow and its result known: the good entry is what the exporter gave.
    captured = split_file._read_entry(entry(folder))
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(good[: len(good) // 2])
    else:
        at = len(good) // 2
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    monkeypatch.setattr(split_file, "_capture_verified", lambda *_: captured)
    again = split(model(), cache=folder)
    assert not again.cached
    assert path.read_bytes() == good
    assert parts(again)[0] == parts(missed)[0]
    assert split(model(), cache=folder).cached


def test_halves_that_do_not_recompose_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: a split that alters the domain by one rounding is found, and the tensor named."""

    def wrong(*args: Any) -> Halves:
        halves = cut_model(*args)
        value = halves.domain.graph.initializers["head.bias"]
        assert value.const_value is not None
        nudged = np.nextafter(value.const_value.numpy(), np.float32(9))
        value.const_value = ir.Tensor(nudged, name="head.bias")
        return halves

    monkeypatch.setattr(split_file, "cut_model", wrong)
    with pytest.raises(SplitError, match=r"do not recompose: 'logits' differs"):
        split(model())


def test_an_entry_of_other_slots_is_refused(
    cache: tuple[Path, PackedHalves], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should two interfaces ever share a digest, their slots do not fit, and that is said."""
    folder, _ = cache
    one = shape(model())
    monkeypatch.setattr(split_file, "interface", lambda *_: one)
    with pytest.raises(SplitError, match=r"structure has the slots[\s\S]*clear the cache"):
        split(model(norm="batch"), cache=folder)


def test_the_interface_is_all_that_shapes_a_split() -> None:
    """Law: values and classes of a domain leave it alone; method, options, backbone change it."""
    base = shape(model())
    assert shape(model(seed=5)) == base
    assert shape(model(classes=11)) == base
    other = model()
    with torch.no_grad():
        next(other.backbone.parameters()).view(-1)[0] += 1
    changed = [
        shape(other),
        shape(model(pool=2)),
        shape(model(norm="group")),
        shape(toys.attached("single", method="da2", rank=4)),
        shape(toys.attached("single", method="head", rank=4)),
        shape(toys.attached("one_pixel", rank=4)),
    ]
    assert len({base, *changed}) == len(changed) + 1


def test_slots_of_a_filled_structure_are_the_models(cache: tuple[Path, PackedHalves]) -> None:
    folder, _ = cache
    other = model(seed=8)
    hit = split(other, cache=folder)
    want = {n: t.numpy() for n, t in toys_state(other).items()}
    from safetensors.numpy import load

    got = load(hit.slots_data)
    assert set(got) == set(want)
    assert all(np.array_equal(got[n], want[n]) for n in want)


def toys_state(attached: AttachedModel) -> dict[str, torch.Tensor]:
    return domain_state(attached)


def test_cases_of_this_run_were_not_spoiled(plain: Made) -> None:
    """The shared halves still are what a fresh capture gave: no test wrote into them."""
    assert cases.made("plain") is plain
    slots = {n: t.numpy() for n, t in toys_state(plain.model).items()}
    assert all(np.array_equal(plain.slots[n], a) for n, a in slots.items())


def altered(net: nn.Module) -> nn.Module:
    """The net with every tensor of floats another one."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in [*twin.parameters(), *twin.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(1.25).add_(0.01)
    return twin


def headed(net: nn.Module, toy: str) -> AttachedModel:
    return attach(net, method="head", classes=3, input_shape=toys.TOYS[toy].input_shape)


@pytest.mark.parametrize("toy", ["inverted", "tokens"])
def test_a_changed_backbone_has_the_graph_of_the_frozen_one(toy: str) -> None:
    """Law: whatever values weights have, the graph is the same; turned matrices lie beside it."""
    net = toys.backbone(toy)
    base, changed = split(headed(net, toy)), split(headed(altered(net), toy))
    split_file.require_same_graphs(base, changed)
    old, new = safetensors_load(base.weights_data), safetensors_load(changed.weights_data)
    assert old.keys() == new.keys()
    assert all(not np.array_equal(old[name], new[name]) for name in old)


def test_a_changed_backbone_of_another_structure_is_refused_by_name() -> None:
    net = toys.backbone("single")
    base = split(headed(net, "single"))
    other = altered(net)
    other.blocks[0].shortcut = nn.Hardtanh()  # type: ignore[index, union-attr]
    with pytest.raises(GraphError, match="frozen backbone for the changed one") as caught:
        split_file.require_same_graphs(base, split(headed(other, "single")))
    assert caught.value.fix
    heads = split(attach(net, method="head", classes=3, input_shape=(3, 8, 8), seed=1))
    with pytest.raises(GraphError, match="the same slots"):
        split_file.require_same_graphs(base, heads)


class Edited(toys.Residual):
    """One class under one name, whose forward is what ``step`` is: an edit between two trainings.

    ``hidden`` is in no state dict.
    """

    def __init__(self, step: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(8, 8)
        self.step = step
        self.register_buffer("hidden", torch.full((1, 8, 1, 1), 0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(self, super().forward(x))


EDITS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "activation": lambda _, x: nn.functional.hardswish(x),
    "number": lambda _, x: x * 3,
    "another number": lambda _, x: x * 4,
    "constant": lambda _, x: x * torch.tensor([2.0]),
    "another constant": lambda _, x: x * torch.tensor([3.0]),
    "buffer": lambda block, x: x * block.hidden,
    "kernel": lambda _, x: nn.functional.avg_pool2d(x, 3, 1, 1),
    "order": lambda _, x: x.flip(2),
}


def edited(what: str) -> AttachedModel:
    torch.manual_seed(0)
    net = toys.Net(toys.stem(8), [Edited(EDITS[what])], 8).eval()
    return toys.scrambled(attach(net, classes=3, input_shape=(3, 8, 8), rank=4, placement="all"))


def test_an_edited_net_is_another_structure() -> None:
    """Law: where the forward differs, so does the digest, though every name and tensor is equal."""
    shapes = [shape(edited(what)) for what in EDITS]
    assert len(set(shapes)) == len(EDITS)
    assert shape(edited("kernel")) == shapes[list(EDITS).index("kernel")]


def test_an_edited_net_gets_its_own_graph(tmp_path: Path) -> None:
    """Both are proved against PyTorch, so the graph of the other one would be refused."""
    folder = tmp_path / "cache"
    first, second = (split(edited(what), cache=folder) for what in ("activation", "number"))
    assert not first.cached
    assert not second.cached
    assert first.backbone_graph != second.backbone_graph
    assert first.weights_data == second.weights_data


def test_a_buffer_that_is_in_no_state_dict_counts() -> None:
    one, other = edited("buffer"), edited("buffer")
    with torch.no_grad():
        other.backbone.get_buffer("blocks.0.hidden").mul_(2)
    assert shape(one) == shape(edited("buffer")) != shape(other)
