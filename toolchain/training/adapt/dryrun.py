"""Run a backbone once and note every module's input and output, and who reads what.

Rules of this file: one picture of zeros, evaluation mode, no gradient. Afterwards the backbone is
as it was before, hooks and mode included. It draws no conclusions (``blocks`` does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from toolchain.core.errors import AttachError

# These read a tensor's shape and type, never its values.
_LIKE = ("new_", "_like")


@dataclass(slots=True)
class ModuleCall:
    """What hooks saw of one module: ``count`` runs, and the last run's input and output maps.

    ``order``: the place of the last run among all runs of modules. The tensors themselves are
    noted, so that identity can be compared. ``input_version`` and ``output_version`` are PyTorch's
    counts of in-place writes to them, when the module was entered and left.
    """

    count: int = 0
    order: int = 0
    input: Tensor | None = None
    output: Tensor | None = None
    input_version: int = 0
    output_version: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """One operator that read a value which depends on the picture.

    ``value``: the tensor's number. ``maker``, ``reader``: the modules that ran, from the outermost
    to the innermost, when the value was made and when it was read.
    """

    value: int
    maker: tuple[str, ...]
    reader: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DryRun:
    """What one run told: calls by module name, the output, the operations, and who read what.

    ``flops``: multiply-adds by module name; those of the whole backbone have an empty one.
    ``numbers``: those of the tensors in ``reads``; 0 is the picture.
    """

    calls: Mapping[str, ModuleCall]
    output: object
    flops: Mapping[str, int]
    reads: tuple[Read, ...]
    numbers: Mapping[Tensor, int]

    def strangers(self, name: str) -> Iterator[Read]:
        """Yield the reads inside module ``name`` of the picture's values that others made.

        Its input does not count.
        """
        source = self._number(self.calls[name].input)
        for read in self.reads:
            if name in read.reader and name not in read.maker and read.value != source:
                yield read

    def leaks(self, name: str) -> Iterator[Read]:
        """Yield the reads by others of the picture's values that module ``name`` made.

        Its output does not count.
        """
        result = self._number(self.calls[name].output)
        for read in self.reads:
            if name in read.maker and name not in read.reader and read.value != result:
                yield read

    def _number(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self.numbers.get(tensor)


class _Readers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what depends on the picture from operator to operator.

    ``running``: the modules that run now, outermost first; the hooks keep it.
    """

    def __init__(self, picture: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: list[str] = []
        self.reads: dict[Read, None] = {}
        self.numbers: Any = WeakTensorKeyDictionary()
        self._makers: list[tuple[str, ...]] = []
        self._number(picture)

    def _number(self, tensor: Tensor) -> None:
        # An operator in place returns the tensor that it was given, which has a number already.
        if tensor not in self.numbers:
            self.numbers[tensor] = len(self._makers)
            self._makers.append(tuple(self.running))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.startswith(_LIKE[0]) or name.endswith(_LIKE[1]):
            return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        values = [self.numbers[tensor] for tensor in tensors if tensor in self.numbers]
        for value in values:
            self.reads[Read(value, self._makers[value], tuple(self.running))] = None
        if values:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._number(leaf)
        return result


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Let ``nn.MultiheadAttention`` run operator by operator, as it does with gradients.

    Without gradients it is one operator, inside of which nobody sees anything.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _unfused() -> Iterator[None]:
    """Let attention run as plain products inside the block of code, which can be counted.

    PyTorch counts no operations of the CPU's fused attention, nor of ``nn.MultiheadAttention``'s.
    """
    with without_fast_path(), sdpa_kernel(SDPBackend.MATH):
        yield


def first_tensor(value: object) -> Tensor | None:
    """Return the map in a block's argument or result: itself, or a tuple's first entry."""
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return a block's input map: the first positional argument, else the first keyword tensor."""
    if args:
        return first_tensor(args[0])
    return next((v for v in kwargs.values() if isinstance(v, Tensor)), None)


def output_tensor(output: object) -> Tensor | None:
    """Return the tensor that a backbone returns: plain, the first of several, or by its name.

    Names are ``logits`` and ``pooler_output``, attributes or keys. A dict of one tensor needs none.
    """
    entries = output if isinstance(output, Mapping) else {}
    for name in ("logits", "pooler_output"):
        inner = getattr(output, name, entries.get(name))
        if isinstance(inner, Tensor):
            return inner
    if len(entries) == 1:
        return first_tensor(next(iter(entries.values())))
    return first_tensor(tuple(output) if isinstance(output, list) else output)


def _picture(backbone: nn.Module, shape: tuple[int, ...]) -> Tensor:
    # A backbone in another precision than float32 runs on pictures of its own dtype.
    reference = next(backbone.parameters(), torch.zeros(1))
    return torch.zeros(1, *shape, dtype=reference.dtype)


@contextmanager
def _evaluating(backbone: nn.Module) -> Iterator[None]:
    """Put a backbone into evaluation, without gradient, inside the block of code."""
    was_training = backbone.training
    # PyTorch's counter of operations wants the gradient of a parameter that a module takes as its
    # input (CaiT's class token), and none is there.
    learning = [p for p in backbone.parameters() if p.requires_grad]
    backbone.eval().requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        backbone.train(was_training)
        for parameter in learning:
            parameter.requires_grad_(True)


def runs_channels_last(backbone: nn.Module, shape: tuple[int, ...]) -> bool:
    """Tell whether a backbone runs on pictures ``shape`` (C, H, W) whose channels lie last.

    A backbone that takes a map's ``view`` does not.
    """
    if len(shape) != 3:
        return False
    picture = _picture(backbone, shape).contiguous(memory_format=torch.channels_last)
    try:
        with _evaluating(backbone):
            backbone(picture)
    except RuntimeError:
        return False
    return True


def dry_run(backbone: nn.Module, shape: tuple[int, ...]) -> DryRun:
    """Run ``backbone`` on one picture of zeros; ``shape`` is without the batch.

    Raises AttachError when the backbone does not run on it.
    """
    calls = {name: ModuleCall() for name, _ in backbone.named_modules()}
    picture = _picture(backbone, shape)
    readers = _Readers(picture)
    counter = FlopCounterMode(display=False)
    handles = list(_noting(backbone, calls, readers.running))
    try:
        with _evaluating(backbone), _unfused(), readers, counter:
            output = backbone(picture)
    except Exception as err:  # a backbone's forward is the caller's code and may raise anything
        raise AttachError(
            f"{type(backbone).__name__} does not run on an input of shape [1, "
            f"{', '.join(map(str, shape))}]: {type(err).__name__}: {err}",
            fix="give the shape it expects, attach(..., input_shape=(channels, height, width)), or "
            "call it on torch.zeros of that shape alone to see where it fails",
        ) from err
    finally:
        for handle in handles:
            handle.remove()
    flops = _flops(backbone, counter)
    return DryRun(calls, output, flops, tuple(readers.reads), readers.numbers)


def _flops(backbone: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    """Return the multiply-adds of every module, by name."""
    # FlopCounterMode names modules by their path behind the class name of the outermost one, and
    # counts a multiply-add as two operations; shares do not care, readers do.
    counts, outermost = counter.get_flop_counts(), type(backbone).__name__
    paths = {
        name: f"{outermost}.{name}" if name else "Global" for name, _ in backbone.named_modules()
    }
    return {name: sum(counts.get(path, {}).values()) // 2 for name, path in paths.items()}


def _noting(
    backbone: nn.Module, calls: Mapping[str, ModuleCall], running: list[str]
) -> Iterator[Any]:
    """Hook every module to note its call, and itself in ``running``; yield the hooks' handles.

    All modules and not only likely blocks: the layout of a block's map is read off the layers
    inside, and the classifier is found by the identity of its output.
    """
    entered = 0

    def enter(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal entered
            entered += 1
            running.append(name)
            call = calls[name]
            call.order = entered
            call.input = block_input(args, kwargs)
            call.input_version = 0 if call.input is None else call.input._version

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            running.pop()
            call = calls[name]
            call.count += 1
            call.output = first_tensor(output)
            call.output_version = 0 if call.output is None else call.output._version

        return hook

    for name, module in backbone.named_modules():
        yield module.register_forward_pre_hook(enter(name), with_kwargs=True)
        yield module.register_forward_hook(leave(name))
