"""Backbone weights: from a file, or from the package that ships them, into a module.

Rules of this file: it checks weights before it uses them (size, digest, names, shapes, finite
values) and reports all faults of a file at once. It initialises nothing at random unless the caller
gives a seed. It reads tensors only: ``.safetensors``, or a file of ``torch.save`` through
``weights_only``, which runs no code from the file. What a training program wrapped around the
weights is taken off (``wrappings``). Checkpoints of domains are another subject (``checkpoint``),
and ``attach`` freezes.
"""

from __future__ import annotations

import argparse
import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from toolchain.core import digest, files
from toolchain.core.errors import Da3Error, UsageError, WeightsError, first_few
from toolchain.core.files import is_file
from toolchain.core.timing import Notify
from toolchain.training.adapt import backbones
from toolchain.training.adapt.backbones import Backbone
from toolchain.training.adapt.wrappings import state_dict_in, unwrap

# Far above any backbone here. They keep a damaged or hostile file from filling the memory.
LIMIT_BYTES = 2 * 1024**3
LIMIT_TENSORS = 20_000
LISTED = 8
"""How many tensors of one kind of fault are named before the rest is only counted."""

# What lies in place of weights where a download failed: no pickle and no safetensors begin so.
_DOWNLOADED = (
    (b"<!doctype", "a page of HTML"),
    (b"<html", "a page of HTML"),
    (b"<?xml", "a page of XML"),
    (b"version https://git-lfs", "a pointer of Git LFS (git lfs pull fetches the file)"),
)
# BatchNorm's step counter: old checkpoints lack it, and evaluation never reads it.
_COUNTER = ".num_batches_tracked"
# Names under which torch.save's files go: Lightning's are .ckpt, transformers' .bin, and many
# training scripts write .pth.tar. The content decides.
_PICKLED = (".pth", ".pt", ".ckpt", ".bin", ".tar")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Where weights come from, the digest that they must have, and the fix for another one."""

    path: Path
    sha256: str | None
    backbone: str
    fix: str = "the file is damaged or another one: fetch it again, or correct the digest"


def load_backbone(
    name: str,
    *,
    weights: Path | None = None,
    sha256: str | None = None,
    untrained_seed: int | None = None,
    notify: Notify = lambda _: None,
) -> nn.Module:
    """Return the backbone ``name`` with its weights, float32, in eval mode.

    Args:
        name: a registered backbone (``toolchain.training.adapt.backbones.available``).
        weights: ``.safetensors``, or a file of ``torch.save`` (``.pth``, ``.pt``, ``.ckpt``,
            ``.bin``, ``.tar``); None for the file that the package ships, or that was fetched.
        sha256: digest of the bytes of ``weights``, with or without ``sha256:`` in front.
        untrained_seed: initialise from this seed instead of reading weights, for benchmarks and
            tests. The global random state stays as it was.
        notify: gets one line for what a training program had wrapped around the weights.

    The classifier takes the class count of the file, so weights trained for another number of
    classes load unchanged; a domain's head replaces it later. BatchNorm's ``num_batches_tracked``
    may be absent.

    Raises:
        UnknownNameError: no such backbone.
        UsageError: options that contradict each other.
        WeightsError: no weights, a wrong digest, a damaged file, missing, extra or wrongly shaped
            tensors, NaN or infinite values.
        StorageError: the file cannot be read.

    """
    backbone = backbones.get(name)
    if untrained_seed is not None:
        if weights is not None or sha256 is not None:
            raise UsageError(
                f"backbone {name!r}: expected weights or untrained_seed, got both",
                fix="leave out one of them",
            )
        return untrained(backbone, untrained_seed)
    if weights is not None:
        return _loaded(backbone, WeightsFile(Path(weights), sha256, name), notify)
    if sha256 is not None:
        raise UsageError(
            f"backbone {name!r}: expected sha256 together with weights, got sha256 alone",
            fix="name the weights file that this digest belongs to",
        )
    backbone.require_weights(None)
    if backbone.package is None:
        fix = f"it is damaged, or of another release of the toolchain: {backbone.how_to_fetch}"
        source = WeightsFile(backbone.fetched_path, backbone.weights_sha256, name, fix=fix)
        return _loaded(backbone, source, notify)
    return _loaded_shipped(backbone, backbone.package, notify)


def untrained(backbone: Backbone, seed: int) -> nn.Module:
    """Return the untrained module; what is wrong with a stranger's package names that package."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: object = backbone.build()
        except (Da3Error, MemoryError):
            raise
        except Exception as err:  # a stranger's code may raise anything
            raise _package_fault(
                backbone, f"its build() raised {type(err).__name__}: {err}", "repair its build()"
            ) from err
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise _package_fault(
            backbone, f"expected an nn.Module of its build(), got {got}", "return the module"
        )
    _require_classifier(backbone, model)
    if lazy := [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]:
        raise _package_fault(
            backbone,
            f"expected parameters with a shape, got lazy ones: {first_few(lazy, LISTED)}",
            "name their sizes, or run the net once in build()",
        )
    return model.eval()


def _require_classifier(backbone: Backbone, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    if backbone.classifier in modules:  # '' is the module itself
        return
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    right = f"classifier={linear[-1]!r}, its last Linear layer; " if linear else ""
    raise _package_fault(
        backbone,
        f"expected the classifier {backbone.classifier!r} among its modules, got none of that name",
        f"name {right}classifier='' where the backbone returns features",
    )


def _package_fault(backbone: Backbone, message: str, fix: str) -> WeightsError:
    owner = backbones.publisher(backbone.name)
    return WeightsError(
        f"backbone {backbone.name!r} of package {owner}: {message}",
        fix=f"in that package, {fix}",
    )


def _loaded_shipped(backbone: Backbone, package: str, notify: Notify) -> nn.Module:
    assert backbone.weights_file is not None
    try:
        folder = resources.files(package)
    except ImportError as err:
        raise _package_fault(
            backbone,
            f"expected the package {package!r}, which ships its weights, got {err}",
            "name the package that ships them, and install that one",
        ) from err
    with resources.as_file(folder / backbone.weights_file) as path:
        if not is_file(path):
            raise _no_such_weights(backbone, package, path)
        source = WeightsFile(path, backbone.weights_sha256, backbone.name)
        return _loaded(backbone, source, notify)


def _no_such_weights(backbone: Backbone, package: str, path: Path) -> WeightsError:
    """Return the error for a weights file that its package does not ship where it is said to be."""
    fix = f"name its weights_file from the folder of {package} on, or install it again"
    with resources.as_file(resources.files(package)) as root:
        near = [entry.relative_to(root) for entry in root.rglob(path.name)]
    if near:
        fix = f"name weights_file={near[0].as_posix()!r}"
    return _package_fault(
        backbone,
        f"expected the weights that package {package!r} ships at {path}, got no such file",
        fix,
    )


def _loaded(backbone: Backbone, source: WeightsFile, notify: Notify) -> nn.Module:
    value, keys = read(source)
    # Every value is overwritten below; the seed only keeps the global random state untouched.
    model = untrained(backbone, seed=0)
    expected = [name for name in model.state_dict() if _is_needed(backbone, name)]
    unwrapped = unwrap(value, expected, str(source.path), keys)
    tensors = unwrapped.tensors
    _fit_classifier(model, backbone.classifier, tensors)
    check(model.state_dict(), tensors, source, backbone.classifier)
    model.load_state_dict(dict(tensors), strict=False)
    if unwrapped.notes:
        notify(f"{source.path}: {'; '.join(unwrapped.notes)}")
    return model


def _is_needed(backbone: Backbone, name: str) -> bool:
    """Tell whether a tensor has to be in a file; a domain's head replaces the classifier."""
    classifier = f"{backbone.classifier}." if backbone.classifier else None
    replaced = classifier is not None and name.startswith(classifier)
    return not replaced and not name.endswith(_COUNTER)


def read(source: WeightsFile) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return the file's named tensors, and the keys under which they lay in it.

    Size and digest are checked before it is parsed.
    """
    what = f"weights of backbone {source.backbone!r}"
    data = files.read_limited(source.path, limit_bytes=LIMIT_BYTES, what=what)
    if source.sha256 is not None:
        expected = "sha256:" + source.sha256.lower().removeprefix("sha256:")
        if (actual := digest.sha256(data)) != expected:
            raise WeightsError(
                f"{source.path}: expected {expected}, got {actual}",
                fix=source.fix,
            )
    if got := next(
        (kind for head, kind in _DOWNLOADED if data[:64].lstrip().lower().startswith(head)), ""
    ):
        raise WeightsError(
            f"{source.path}: expected a weights file, got {got}",
            fix="fetch the file itself again",
        )
    match source.path.suffix:
        case ".safetensors":
            return _from_safetensors(data, source), []
        case suffix if suffix in _PICKLED:
            return _from_pickle(data, source)
        case other:
            raise WeightsError(
                f"{source.path}: expected a .safetensors file or one of torch.save "
                f"({', '.join(_PICKLED)}), got {other!r}",
                fix="save the state dict with safetensors.torch.save_file",
            )


def _from_safetensors(data: bytes, source: WeightsFile) -> Mapping[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as err:
        raise _unreadable(source, err) from err


def _from_pickle(data: bytes, source: WeightsFile) -> tuple[Mapping[str, Tensor], list[str]]:
    try:
        with (
            warnings.catch_warnings(),  # torch warns of raw pickles; weights_only decides
            # Training scripts save their arguments beside the weights. It is a plain record.
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            warnings.simplefilter("ignore")
            value: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        # PyTorch's own text advises to switch the protection off.
        raise WeightsError(
            f"{source.path}: expected a readable {source.path.suffix} file of tensors alone, "
            "got a damaged one, or one whose pickle asks for code to be run",
            fix="save the state dict alone, where the file was made: torch.save("
            "model.state_dict(), 'weights.pth'), of a Lightning checkpoint its 'state_dict'",
        ) from err
    except Exception as err:  # a damaged pickle can raise anything; nothing of it was used yet
        raise _unreadable(source, err) from err
    return state_dict_in(value, str(source.path))


def _unreadable(source: WeightsFile, err: Exception) -> WeightsError:
    first_line = (str(err).splitlines() or [""])[0][:200]
    return WeightsError(
        f"{source.path}: expected a readable {source.path.suffix} file, "
        f"got {type(err).__name__}: {first_line}",
        fix="fetch or save the file again; one that holds more than tensors is refused",
    )


def _fit_classifier(model: nn.Module, path: str, tensors: Mapping[str, Tensor]) -> None:
    """Give the classifier the file's class count; a domain's head replaces it later."""
    linear, weight = model.get_submodule(path), tensors.get(f"{path}.weight")
    if not isinstance(linear, nn.Linear) or weight is None or weight.ndim != 2:
        return
    classes, features = weight.shape
    if features == linear.in_features and classes not in (0, linear.out_features):
        with torch.device("meta"):  # its values come from the file, none is drawn
            fitted = nn.Linear(features, classes, bias=linear.bias is not None)
        model.set_submodule(path, fitted.to_empty(device="cpu").eval())


def check(
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    source: WeightsFile,
    classifier: str,
) -> None:
    """Raise one WeightsError that lists everything that keeps ``tensors`` from being loaded."""
    if len(tensors) > LIMIT_TENSORS:
        raise WeightsError(
            f"{source.path}: expected at most {LIMIT_TENSORS} tensors, got {len(tensors)}",
            fix="check that this file holds one backbone",
        )
    plain = {name: tensor for name, tensor in tensors.items() if _is_plain(tensor)}
    faults = {
        "missing": [n for n in expected if n not in tensors and not n.endswith(_COUNTER)],
        "extra": [n for n in tensors if n not in expected],
        "wrongly shaped": [
            f"{name} (expected {list(parameter.shape)}, got {list(tensors[name].shape)})"
            for name, parameter in expected.items()
            if name in tensors and tensors[name].shape != parameter.shape
        ],
        "of another kind": [
            f"{name} (expected {parameter.dtype}, got {tensors[name].dtype})"
            for name, parameter in expected.items()
            if name in tensors
            and tensors[name].is_floating_point() != parameter.is_floating_point()
        ],
        "sparse, quantised or without values": [n for n in tensors if n not in plain],
        "not finite (NaN or Inf)": [n for n, t in plain.items() if not bool(t.isfinite().all())],
        "negative variance": [
            n for n, t in plain.items() if n.endswith("running_var") and bool((t < 0).any())
        ],
    }
    lines = [f"{k}: {first_few(sorted(names), LISTED)}" for k, names in faults.items() if names]
    if lines:
        raise WeightsError(
            f"{source.path}: expected the weights of backbone {source.backbone!r}, "
            f"got a file that does not fit\n  " + "\n  ".join(lines),
            fix=_without_classifier(expected, faults, classifier)
            or "use weights of this architecture, or name the backbone that they belong to",
        )


def _without_classifier(
    expected: Mapping[str, Tensor], faults: Mapping[str, list[str]], classifier: str
) -> str:
    """Return what helps a file that lacks the classifier alone, as self-supervised ones do."""
    missing = faults["missing"]
    if not classifier or [kind for kind, names in faults.items() if names] != ["missing"]:
        return ""
    if any(not name.startswith(f"{classifier}.") for name in missing):
        return ""
    # The file's class count counts: one class is the least.
    zeros = ", ".join(
        f"{name!r}: torch.zeros({[1, *expected[name].shape[1:]]})" for name in missing
    )
    return (
        "a domain's head replaces the classifier, so zeros will do: "
        f"torch.save({{**state_dict, {zeros}}}, 'weights.pth')"
    )


def _is_plain(tensor: Tensor) -> bool:
    """Tell a tensor whose values lie one beside the other, as every weight of a backbone does."""
    return tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_meta)
