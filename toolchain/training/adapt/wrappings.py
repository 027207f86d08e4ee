"""What training programs wrap around a state dict, and how it is taken off.

Rules of this file: names and tensors in, names and tensors out; it reads no files and builds no
model. It takes off only what is plainly a wrapping, says what that was, and asks where a file holds
two sets of weights: which one is meant, nobody can see.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from toolchain.core.errors import WeightsError, first_few

# Where training programs put the weights beside optimiser, epoch and arguments. Averaged ones
# (EMA, SWA) lie beside the raw ones, under a name with one of these words.
_RAW = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights")
_AVERAGED = re.compile(r"(?:^|[_.-])(?:ema|swa|averaged?|shadow)(?:$|[_.-])", re.IGNORECASE)
# Modules that torch.compile, FSDP and checkpointing put around others, anywhere in the tree.
_SHELLS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_LISTED = 8
_LEVELS = 3


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """A state dict, and one line for each thing that was around it."""

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...]


def state_dict_in(value: Any, where: str) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return the state dict in a checkpoint that was read, and the keys under which it lay.

    Raises WeightsError where there is none, or where raw and averaged weights lie side by side.
    """
    keys: list[str] = []
    # Programs nest: a checkpoint of one lies in a checkpoint of another.
    for _ in range(_LEVELS):
        if _is_state(value) or not isinstance(value, Mapping):
            break
        names = [k for k in _RAW if _holds_weights(value.get(k))]
        averaged = [k for k in value if _is_averaged(k) and _holds_weights(value[k])]
        names += averaged
        if len(names) > 1:
            raise _several(value, names, averaged, where)
        if not names:
            break
        keys.append(names[0])
        value = value[names[0]]
    if not _is_state(value):
        listed = first_few([str(k) for k in value], _LISTED) if isinstance(value, Mapping) else ""
        raise WeightsError(
            f"{where}: expected a state dict (tensor names to tensors), got {type(value).__name__}"
            + f" with {listed}" * bool(listed),
            fix="save model.state_dict() with torch.save",
        )
    return value, keys


def _several(
    value: Mapping[str, Any], names: list[str], averaged: list[str], where: str
) -> WeightsError:
    what = "averaged (EMA) beside raw ones" if averaged else "under several names"
    # Some programs keep averages as a list in the order of the parameters: nobody can load those.
    usable = [name for name in names if _leads_to_state(value[name])] or names
    better = "; averaged weights are mostly the better ones" * (usable[-1] in averaged)
    return WeightsError(
        f"{where}: expected one set of weights, got {len(names)} {what}: {', '.join(names)}",
        fix=f"save the one that you mean: torch.save(checkpoint[{usable[-1]!r}], 'weights.pth')"
        f"{better}",
    )


def _is_averaged(name: object) -> bool:
    return isinstance(name, str) and _AVERAGED.search(name) is not None


def _holds_weights(value: object, levels: int = _LEVELS) -> bool:
    """Tell weights from settings that go by the same name."""
    if not isinstance(value, Mapping | list | tuple) or not levels:
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return any(isinstance(v, Tensor) or _holds_weights(v, levels - 1) for v in inner)


def _leads_to_state(value: object, levels: int = _LEVELS) -> bool:
    if not isinstance(value, Mapping) or not levels:
        return False
    return _is_state(value) or any(_leads_to_state(v, levels - 1) for v in value.values())


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def unwrap(
    tensors: Mapping[str, Tensor], expected: Iterable[str], where: str, keys: Iterable[str] = ()
) -> Unwrapped:
    """Return ``tensors`` under the names of the backbone, which are those ``expected``.

    A wrapper's prefix (``module.``, ``model.``, ``_orig_mod.``) is taken off if all expected names
    stand behind it. What stands outside the prefix belongs to the program that trained it. Raises
    WeightsError where two prefixes hold the backbone.
    """
    notes = [f"its weights lie under {key!r}" for key in keys]
    expected = tuple(expected)
    if _SHELLS.isdisjoint(part for name in expected for part in name.split(".")):
        bare = {_without_shells(name): tensor for name, tensor in tensors.items()}
        # Fewer names than before: two tensors would get one name, so nothing is taken off.
        if len(bare) == len(tensors) and bare.keys() != tensors.keys():
            notes.append(f"took off {', '.join(sorted(_shells(tensors)))}")
            tensors = bare
    prefixes = _prefixes(tensors, expected)
    if prefixes in ([], [""]):
        return Unwrapped(tensors, tuple(notes))
    if len(prefixes) > 1:
        shown = ", ".join(repr(prefix) for prefix in prefixes)
        raise WeightsError(
            f"{where}: expected one set of weights, got one behind each of {shown}",
            fix=f"save the one that you mean: torch.save({{k.removeprefix({prefixes[-1]!r}): v for "
            f"k, v in state.items() if k.startswith({prefixes[-1]!r})}}, 'weights.pth')",
        )
    (prefix,) = prefixes
    inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    outside = [name for name in tensors if not name.startswith(prefix)]
    # AveragedModel counts its updates beside the weights: a number is no second set.
    if averaged := [n for n in outside if _is_averaged(n.split(".")[0]) and tensors[n].dim()]:
        raise WeightsError(
            f"{where}: expected one set of weights, got averaged ones ({averaged[0]}, ...) beside "
            f"those behind {prefix!r}",
            fix="save the one that you mean: copy the averages into the model as the program that "
            "trained it does, then torch.save(model.state_dict(), 'weights.pth')",
        )
    notes.append(f"took off the prefix {prefix!r}")
    if outside:
        notes.append(f"left out {first_few(outside, _LISTED)}")
    return Unwrapped(inside, tuple(notes))


def _prefixes(tensors: Mapping[str, Tensor], expected: tuple[str, ...]) -> list[str]:
    """Return the prefixes behind which all expected names stand."""
    if not expected:
        return []
    first = expected[0]
    ends = [n.removesuffix(first) for n in tensors if n == first or n.endswith(f".{first}")]
    return [p for p in dict.fromkeys(ends) if all(f"{p}{name}" in tensors for name in expected)]


def _shells(tensors: Iterable[str]) -> set[str]:
    return {part for name in tensors for part in name.split(".") if part in _SHELLS}


def _without_shells(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _SHELLS)
