"""onnxruntime sessions as this project uses them.

Rules of this file: the CPU provider, chosen explicitly; a model comes as bytes and its large
tensors from one folder; every fault of onnxruntime becomes one of our errors, here and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from toolchain.errors import GraphError

Array = npt.NDArray[Any]
PROVIDERS = ["CPUExecutionProvider"]
# onnxruntime's exceptions share no base class of their own.
FAULTS = (
    RuntimeError,
    ValueError,
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    ort.capi.onnxruntime_pybind11_state.NoSuchFile,
    ort.capi.onnxruntime_pybind11_state.NotImplemented,
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
)
_FOLDER = "session.model_external_initializers_file_folder_path"


class Session:
    """One onnxruntime session over a model given as bytes.

    ``folder`` holds the external tensors (``weights.safetensors``); ``constants`` gives further
    ones in memory by tensor name (a static model's slots). ``exact`` turns every graph optimisation
    off, so that the nodes run as they are written. ``threads``: of one operator.
    """

    def __init__(
        self,
        model: bytes,
        *,
        folder: Path | None = None,
        constants: Mapping[str, Array] | None = None,
        threads: int = 1,
        exact: bool = False,
        what: str = "model",
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if exact:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if folder is not None:
            options.add_session_config_entry(_FOLDER, str(folder))
        # onnxruntime keeps pointers into these, not copies.
        self._constants = [ort.OrtValue.ortvalue_from_numpy(a) for a in (constants or {}).values()]
        if constants:
            options.add_external_initializers(list(constants), self._constants)
        self.what = what
        try:
            self._session = ort.InferenceSession(model, options, providers=PROVIDERS)
            # Names that are no UTF-8 show here.
            self.inputs: dict[str, tuple[int | str | None, ...]] = {
                i.name: tuple(i.shape) for i in self._session.get_inputs()
            }
            self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        except FAULTS as err:
            raise GraphError(
                f"{what}: onnxruntime {ort.__version__} cannot load it: {_first_line(err)}",
                fix="use the onnxruntime of constraints.txt, or export again",
            ) from err

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run once; returns the outputs asked for (all, by default) by name.

        Raises GraphError for a missing, unknown or misshapen input.
        """
        names = list(outputs or self.outputs)
        try:
            values = self._session.run(names, dict(feeds))
        except FAULTS as err:
            raise GraphError(
                f"{self.what}: onnxruntime refused to run: {_first_line(err)}",
                fix=f"expected the inputs {_shapes(self.inputs)}",
            ) from err
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def _first_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__


def _shapes(inputs: Mapping[str, Sequence[object]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in inputs.items())
