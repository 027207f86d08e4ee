"""Keep what zoo runs found, and write it as docs/models.md.

Rules of this file: the whole page is made here, from the results kept in build/zoo; a run of some
models replaces their rows only. Nothing is judged here: see :mod:`tests.zoo.trial`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from textwrap import fill

from tests.zoo.catalogue import ENTRIES
from tests.zoo.ours import Twin
from tests.zoo.trial import Row

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
KEPT = ROOT / "build" / "zoo"
PACKAGES = (
    *("torch", "torchvision", "timm", "transformers"),
    *("onnx", "onnx-ir", "onnxscript", "onnxruntime"),
)

HEAD = """# Real models

This page says what happens to classification models of torchvision, timm and transformers on their
way through attach, split, link and parity. These commands write it:

```
make test-zoo                                      # all of them
.venv-zoo/bin/python -m tests.zoo swin densenet    # some of them, by a part of their names
```

They run in an environment of their own (`.venv-zoo`, about 5 GB, pinned in `constraints-zoo.txt`).
They are no part of `make test`.

{versions}

Weights are untrained and drawn from a seed. Scales that a zoo starts at zero (layer scale, the last
norm of a residual branch) are drawn anew, so that every block acts. BatchNorm statistics are those
of one batch of pictures. Every block takes an adaptor (`placement="all"`) with random weights. A
block that keeps its shape also takes a gate, which half of the pictures open. *Gateable share* is
the part of the backbone's multiply-adds that lies in such blocks.

For each model that passes, all of this holds:

* It was captured, its BatchNorms were folded, and it was split. Its halves together gave the same
  answers bit for bit.
* It was linked as `swap` and `static`, each with `If` (batch 1) and with rows (batch 1 and 16), as
  `staged`, and as `static` with every gate resolved, half of them open. `onnx.checker` accepts all.
* Every one of these answers as eager fp32 PyTorch does: the same top-1, the same state of every
  gate, and logits within 1e-4 of their range. Each gate is open in some pictures and closed in
  others. *max error* is the largest of these differences, relative to that range.
* Each picture gets the same logits alone and in a batch (*alone*: largest relative difference).

"""

PROSE = """
## Naming blocks by hand

`attach` finds a block by its structure: a module inside a `Sequential` or `ModuleList` that runs
once, takes one map, returns one map of the same rank, and holds at least two weighted layers. It
knows nothing of any zoo. If a model is built in another way, name its blocks. The error lists
candidates:

```python
attach(googlenet, classes=7, blocks=["inception3a", "inception3b", "inception4a"])
```

You can name any module that runs once from map to map, also a single convolution. These rules hold:

* A gate needs a block that keeps its shape. Other blocks take an adaptor only, and nothing is
  skipped. A stage that changes its shape is opened: `attach` takes the blocks inside that keep
  theirs (and hold half of its multiply-adds), and those of its neighbours. Where no block keeps
  its shape (dense blocks), say `placement="all"`.
* A block works on one picture at a time: the first dimension of its map is the batch. Some blocks
  see the pixels of a patch as further pictures (inside MobileViT's). `attach` takes the block
  around them.
* Nobody else may need what a gated block makes besides its output, and the block may read nothing
  that others made of the picture besides its input: scores that are handed from block to block, or
  a second entry of a tuple that the head reads. `attach` refuses such a gate and names the reader.
  The other blocks can still have gates, and `da2` has none.
* What depends on the batch's shape alone is no such value. A mask or a token that is expanded to
  the batch size is computed anew for the rows whose gate is open.
* A block's input and output must stay as they are. `attach` refuses activations that write in place
  into either. This helps and changes no answer:
  `for m in net.modules(): if hasattr(m, "inplace"): m.inplace = False`.
* `attach` finds the classifier if it is a `Linear` layer, or a 1x1 convolution of one pixel, that
  returns the answer. Otherwise name it (`head="classifier.1"`), build the model without one
  (`timm.create_model(..., num_classes=0)`), or wrap it in a module that returns pooled features.
  Say `head=""` where the structure could be read either way.
* `input_shape` is part of what is attached. Adaptors pool to a grid that divides the block's map,
  so a model is attached, trained and exported at one picture size.
"""


def line(row: Row) -> str:
    """One model in one line, for the terminal."""
    outcome = row.refused.replace("\n", " ") or f"max error {row.error:.1e}, alone {row.alone:.1e}"
    steps = " ".join(f"{name} {seconds:.0f}s" for name, seconds in row.seconds.items())
    blocks = f"{row.blocks} blocks, {row.gateable} gateable ({row.share:.0%}), {row.gated} gated"
    mark = "ok  " if row.expected else "FAIL"
    return f"{mark} {row.entry.name}: {blocks}; {outcome} ({steps})"


def twin_line(twin: Twin) -> str:
    """One of our backbones in one line."""
    mark = "ok  " if twin.passed else "FAIL"
    return f"{mark} our {twin.name}: {twin.tensors} tensors, error {twin.error:.1e}"


def write(rows: Sequence[Row], twins: Sequence[Twin]) -> None:
    """Keep the results and write the page from all that are kept."""
    _keep("models", {row.entry.name: _cells(row) for row in rows})
    _keep("ours", {twin.name: asdict(twin) for twin in twins})
    cells, ours = _kept("models"), _kept("ours")
    passed = [c for c in (cells.get(e.name) for e in ENTRIES) if c is not None and c["passed"]]
    other = [c for c in (cells.get(e.name) for e in ENTRIES) if c is not None and not c["passed"]]
    used = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    text = HEAD.format(versions=fill(f"Measured on a CPU with {used}.", 100))
    text += _passed(passed) + _refused(other) + _ours(list(ours.values())) + PROSE
    PAGE.write_text(text)


def _cells(row: Row) -> dict[str, object]:
    return {
        "name": row.entry.name,
        "family": row.entry.family,
        "size": row.entry.size,
        "blocks": row.blocks,
        "gateable": row.gateable,
        "share": row.share,
        "gated": row.gated,
        "forced": row.forced,
        "error": row.error,
        "alone": row.alone,
        "seconds": sum(row.seconds.values()),
        "refused": row.refused,
        "passed": not row.refused,
    }


def _keep(name: str, entries: dict[str, dict[str, object]]) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps({**_kept(name), **entries}, indent=1))


def _kept(name: str) -> dict[str, dict[str, object]]:
    path = KEPT / f"{name}.json"
    entries: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.exists() else {}
    return entries


def _passed(rows: list[dict[str, object]]) -> str:
    lines = [
        f"## {len(rows)} models that pass",
        "",
        "Seconds are of one thread of a busy machine, for the order of magnitude.",
        "",
        "| model | family | pixels | blocks | gateable | gateable share | gated | max error "
        "| alone | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c['name']} | {c['family']} | {c['size']} | {c['blocks']} | {c['gateable']} | "
        f"{c['share']:.0%} | {_gates(c)} | "
        f"{c['error']:.1e} | {c['alone']:.1e} | {c['seconds']:.0f} |"
        for c in rows
    ]
    return "\n".join([*lines, ""])


def _gates(cells: dict[str, object]) -> str:
    forced = f" ({cells['forced']} forced)" if cells["forced"] else ""
    return f"{cells['gated']}{forced}"


def _refused(rows: list[dict[str, object]]) -> str:
    lines = ["", "## Refused as they are", "", "| model | family | what the toolchain says |"]
    lines.append("|---|---|---|")
    for c in rows:
        message = str(c["refused"]).replace("|", "\\|").replace("\n  fix: ", "<br>**fix:** ")
        lines.append(f"| {c['name']} | {c['family']} | {message} |")
    return "\n".join([*lines, ""])


def _ours(rows: list[dict[str, object]]) -> str:
    lines = ["", "## Our backbones beside the zoos'", ""]
    lines += [
        "State-dict keys in order, shapes, and the logits of four pictures of 224 pixels with the "
        "same weights. `efficientnet_lite0` stands beside timm's `tf_efficientnet_lite0`, the "
        "others beside torchvision's.",
        "",
        "| backbone | tensors | keys equal | shapes equal | difference, relative to the range |",
        "|---|---|---|---|---|",
    ]
    for c in rows:
        same = " | ".join("yes" if c[key] else "no" for key in ("same_keys", "same_shapes"))
        lines.append(f"| {c['name']} | {c['tensors']} | {same} | {c['error']:.1e} |")
    return "\n".join([*lines, ""])
