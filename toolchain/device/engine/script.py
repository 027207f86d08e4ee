"""The shell script of a kit: for boards whose JetPack has no Python that this toolchain runs on.

Rules of this file: it fills in ``build.sh.in`` and runs nothing. The script needs a POSIX shell,
coreutils and ``trtexec``; JetPack 4.6 and 5.1 carry all three. Before it builds, the script checks
the kit's files by their hashes. It names the engine by the key, and if there is another engine it
says which parts of the key differ. It writes under a temporary name. With ``--prove`` it compares
the time with all gates closed to the time with all gates open.

Sources: options of ``trtexec`` in samples/common/sampleOptions.cpp of NVIDIA/TensorRT, tags 8.2.1
and 8.5.2. Both have ``--workspace``, ``--timingCacheFile``, ``--buildOnly``, ``--minShapes`` and
``--loadInputs``; only the later one has ``--layerPrecisions``.
"""

from __future__ import annotations

from importlib.resources import files

from toolchain.core.errors import ModelRefusedError
from toolchain.device.boards.target import Target
from toolchain.device.engine.kit import KitManifest, KitModel

SCRIPT_NAME = "build.sh"
_SAVES = "gates that never vary are resolved in a static model (da3-export --flavour static)"
_INSTEAD = {
    "made": f"report it with the log; {_SAVES}",
    "repaired": f"build with da3 build, which repairs it; {_SAVES}",
    "missing": f"this TensorRT never skips; {_SAVES}, a newer JetPack skips the others too",
}


def precision_options(manifest: KitManifest, target: Target, model: KitModel) -> tuple[str, ...]:
    """Return the options of ``trtexec`` beside ``--noTF32`` that decide the precision.

    Before strongly typed networks, TensorRT takes flags beside the graph. From 8.4 on, ``trtexec``
    takes a list of layers that stay fp32. Before, it chooses the faster precision for each layer.
    """
    if target.release.typed or manifest.precision == "fp32":
        return ()
    flag = "--fp16" if manifest.precision == "fp16" else "--int8"
    if not model.pinned or not target.release.layer_precisions:
        return (flag,)
    pinned = ",".join(f"{name}:fp32" for name in model.pinned)
    return (flag, "--precisionConstraints=obey", f"--layerPrecisions={pinned}")


def shape_options(manifest: KitManifest) -> tuple[str, ...]:
    """Return ``--minShapes=...`` and its like: the profile of the class count."""
    profile = manifest.classes
    counts = {"min": profile.low, "opt": profile.best, "max": profile.high}
    if not any(None in slot.shape for slot in manifest.slots):
        return ()
    return tuple(f"--{name}Shapes={_shapes(manifest, count)}" for name, count in counts.items())


def script(manifest: KitManifest, target: Target, digest: str, sums: str, share: float) -> bytes:
    """Return the script that builds the kit's whole model on ``target``.

    ``digest`` identifies the kit's contents; ``sums``: lines of coreutils' sha256sum for the files
    that are read; ``share``: FLOPs of the gated blocks over those of all blocks. Raises
    ModelRefusedError for a kit of segments only, which nothing there could run.
    """
    models = [model for item in manifest.flavours for model in item.models]
    whole = [model for model in models if model.role == "whole"]
    if not whole:
        raise ModelRefusedError(
            f"expected a whole model for {target.name}, got segments only",
            fix="export with --flavour swap as well",
        )
    # A static model has no slots that a gate could be forced through.
    biases = [f"{site}.gate.bias" for site in manifest.gates if manifest.slots]
    shapes = shape_options(manifest)
    values = {
        "target": target.name,
        "jetpack": target.release.jetpack,
        "tensorrt": target.release.tensorrt,
        "precision": manifest.precision,
        "digest": digest,
        "sums": sums.rstrip("\n"),
        "model": whole[0].file,
        "segments": " ".join(model.file for model in models if model.role != "whole"),
        "flags": " ".join(precision_options(manifest, target, whole[0])),
        "shapes": " ".join(shapes),
        "run_shapes": f"--shapes={_shapes(manifest, manifest.classes.best)}" if shapes else "",
        "opened": ",".join(f"{name}:open.bin" for name in biases),
        "closed": ",".join(f"{name}:closed.bin" for name in biases),
        "share": f"{share:.4f}",
        "instead": _INSTEAD[target.release.boundaries],
    }
    text = (
        files("toolchain.device.engine").joinpath(f"{SCRIPT_NAME}.in").read_text(encoding="utf-8")
    )
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text.encode()


def _shapes(manifest: KitManifest, classes: int) -> str:
    """Return ``name:3x4,...`` for every slot whose shape has the class count."""
    opened = [slot for slot in manifest.slots if None in slot.shape]
    return ",".join(
        f"{slot.name}:{'x'.join(str(classes if d is None else d) for d in slot.shape)}"
        for slot in opened
    )
