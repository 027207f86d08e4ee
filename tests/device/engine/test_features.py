"""What each release of TensorRT offers, and that nothing is used which it lacks."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import apis
from toolchain.core.errors import EngineError, UnknownNameError
from toolchain.device.engine import features
from toolchain.device.engine.features import Features, TensorRT, examine, how_to_get, load

DEVICE = Path(features.__file__).parents[1]
TOUCHING = [
    *(
        DEVICE / "engine" / f"{name}.py"
        for name in ("branches", "build", "conditionals", "features", "log", "parse", "tactics")
    ),
    *(DEVICE / "runtime" / "trt" / f"{name}.py" for name in ("backend", "plan")),
    Path(__file__).parents[3] / "benchmarks" / "refit.py",
]


def _features(typing: str, row: str) -> Features:
    """Return the features whose initials stand in ``row``, for one line of the table below."""
    known = {
        "e": "explicit_batch", "m": "pools", "f": "fp16", "i": "int8", "o": "constraints",
        "t": "tf32", "l": "level", "r": "refit_individual", "c": "timing_cache", "n": "error_nodes",
        "k": "native_norm", "w": "without_device", "a": "named_io",
    }  # fmt: skip
    return Features(typing, **{name: letter in row for letter, name in known.items()})  # type: ignore[arg-type]


TABLE = {
    "8.5.3.1": _features("absent", "emfiot c a"),
    "8.6.1": _features("absent", "emfiotl c k a"),
    "10.3.0": _features("flag", "emfiotlrc nk a"),
    "10.6.0": _features("flag", "emfiotlrc nk a"),
    "10.8.0": _features("flag", "emfiotlrcnk a"),
    "10.13.3": _features("flag", "emfiotlrcnk a"),
    "10.16.1": _features("flag", "emfiotlrcnk a"),
    "11.4.0": _features("implied", "mtlrcnk a"),
    "rtx-1.7.1": _features("implied", "mtlrnkwa"),
}

# Class -> members that are used on every release.
ALWAYS = {
    "Builder": "create_network create_builder_config create_optimization_profile "
    "build_serialized_network",
    "IBuilderConfig": "clear_flag set_flag add_optimization_profile set_timing_cache "
    "create_timing_cache",
    "INetworkDefinition": "get_input num_inputs get_layer num_layers num_outputs",
    "ILayer": "name type num_inputs get_input set_input num_outputs get_output",
    "ITensor": "name shape dtype",
    "IConditionLayer": "conditional",
    "IIfConditionalInputLayer": "conditional",
    "IIfConditionalOutputLayer": "conditional",
    "IIfConditional": "name add_input",
    "IOptimizationProfile": "set_shape",
    "OnnxParser": "parse num_errors get_error",
    "ParserError": "desc node",
    "LayerType": "CONDITION CONDITIONAL_INPUT CONDITIONAL_OUTPUT CONSTANT",
    "DataType": "FLOAT",
    "BuilderFlag": "TF32",
    "ILogger": "log",
    "ITimingCache": "serialize",
    "Refitter": "set_named_weights get_missing_weights refit_cuda_engine",
    "Weights": "",
    "Runtime": "deserialize_cuda_engine",
    "ICudaEngine": "create_execution_context",
}
# Feature -> class -> members that are used where it is there.
WHERE = {
    "explicit_batch": {"NetworkDefinitionCreationFlag": "EXPLICIT_BATCH"},
    "named_io": {
        "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_mode get_tensor_shape "
        "get_tensor_dtype get_tensor_profile_shape",
        "IExecutionContext": "set_input_shape set_tensor_address execute_async_v3 infer_shapes "
        "get_tensor_shape all_binding_shapes_specified active_optimization_profile",
        "TensorIOMode": "INPUT",
    },
    "pools": {"IBuilderConfig": "set_memory_pool_limit", "MemoryPoolType": "WORKSPACE"},
    "fp16": {"BuilderFlag": "FP16"},
    "int8": {"BuilderFlag": "INT8"},
    "constraints": {
        "BuilderFlag": "OBEY_PRECISION_CONSTRAINTS",
        "ILayer": "precision set_output_type",
    },
    "level": {"IBuilderConfig": "builder_optimization_level"},
    "refit_individual": {
        "BuilderFlag": "REFIT_INDIVIDUAL",
        "INetworkDefinition": "mark_weights_refittable",
    },
    "error_nodes": {"ParserError": "node_name node_operator"},
    "native_norm": {"OnnxParser": "set_flag", "OnnxParserFlag": "NATIVE_INSTANCENORM"},
    "without_device": {
        "IBuilderConfig": "num_compute_capabilities set_compute_capability",
        "ComputeCapability": "CURRENT",
    },
}
# Used where the release has it; each release has one of them.
EITHER = (
    ("ICudaEngine", ("device_memory_size_v2", "device_memory_size")),
    ("IBuilderConfig", ("set_memory_pool_limit", "max_workspace_size")),
)


def test_table_has_every_release() -> None:
    assert set(TABLE) == set(apis.releases())


@pytest.mark.parametrize("release", apis.releases())
def test_features_follow_from_names(release: str) -> None:
    assert examine(apis.module(release)) == TABLE[release]


def test_one_name_less_is_one_feature_less() -> None:
    without = apis.module("8.5.3.1", frozenset({"set_memory_pool_limit"}))  # as 8.2 has it
    assert examine(without).pools is False
    assert examine(apis.module("10.3.0", frozenset({"FP16"}))).typing == "implied"


@pytest.mark.parametrize("release", apis.releases())
def test_nothing_is_used_that_a_release_lacks(release: str) -> None:
    listing, row = apis.listing(release), TABLE[release]
    tables = [ALWAYS] + [uses for feature, uses in WHERE.items() if getattr(row, feature)]
    if row.typing != "absent":
        tables.append({"NetworkDefinitionCreationFlag": "STRONGLY_TYPED"})
    lacking = [
        f"{kind}.{member}"
        for uses in tables
        for kind, members in uses.items()
        for member in ["", *members.split()]
        if kind not in listing or (member and member not in listing[kind])
    ]
    assert lacking == []
    assert all(listing[kind].intersection(members) for kind, members in EITHER)


def test_every_used_name_stands_in_the_tables() -> None:
    uses = [ALWAYS, *WHERE.values()]
    names = {member for table in uses for members in table.values() for member in members.split()}
    names |= {"STRONGLY_TYPED"} | {member for _, members in EITHER for member in members}
    # Words that are also ours: fields of our own values, methods of Python's.
    ours = {"name", "shape", "dtype", "type", "builder", "logger", "parse"}
    attributes = {
        node.attr: path.name
        for path in TOUCHING
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in apis.every_member()
    }
    assert {name: path for name, path in attributes.items() if name not in names | ours} == {}


def test_no_version_is_compared() -> None:
    for path in TOUCHING:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                text = ast.unparse(node)
                assert "version" not in text and ".build" not in text, f"{path.name}: {text}"


def test_real_module(rtx: TensorRT) -> None:
    assert rtx.features == TABLE["rtx-1.7.1"]
    assert (rtx.name, rtx.module.__name__) == ("tensorrt_rtx", "tensorrt_rtx")
    assert rtx.build == rtx.module.__version__
    assert load("tensorrt_rtx") is rtx


def test_listing_is_what_the_real_module_has(rtx: TensorRT) -> None:
    if not rtx.build.startswith("1.7.1"):
        pytest.skip(f"the listing is that of 1.7.1, installed is {rtx.build}")
    for kind, members in apis.listing("rtx-1.7.1").items():
        assert members <= set(dir(getattr(rtx.module, kind))), kind


def test_unknown_module_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown TensorRT module 'tensort'"):
        load("tensort")


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A Python that has no TensorRT; modules put into the folder are found."""
    features._loaded.cache_clear()
    for name in features.MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    entries = [
        entry for entry in sys.path if not any((Path(entry) / n).is_dir() for n in features.MODULES)
    ]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *entries])
    yield tmp_path
    features._loaded.cache_clear()
    # What was there before comes back with the patch's end.
    for name in features.MODULES:
        sys.modules.pop(name, None)


def test_not_installed(absent: Path) -> None:
    with pytest.raises(EngineError, match=r"tensorrt or tensorrt_rtx, which is not installed"):
        load()
    with pytest.raises(EngineError, match=r"module tensorrt, which is not installed"):
        load("tensorrt")


def test_how_to_get_it_depends_on_the_machine() -> None:
    assert "apt install python3-libnvinfer" in how_to_get("aarch64")
    assert "[tensorrt-rtx]" in how_to_get("x86_64")


FAKE = """
__version__ = "10.3.0.30"
class ILogger:
    pass
class Builder:
    pass
"""


def test_tensorrt_comes_before_rtx(absent: Path) -> None:
    for name in features.MODULES:
        (absent / f"{name}.py").write_text(FAKE)
    assert load().name == "tensorrt"
    assert load("tensorrt_rtx").name == "tensorrt_rtx"
    assert load().build == "10.3.0.30"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import tensorrt_libs", "No module named 'tensorrt_libs'"),
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer"),
        ("raise OSError('libcuda.so.1')", "libcuda"),
        ("", "it has no Builder"),
    ],
    ids=["lacks-a-module", "lacks-a-library", "lacks-a-driver", "an-empty-folder"],
)
def test_module_that_does_not_start(absent: Path, text: str, says: str) -> None:
    (absent / "tensorrt.py").write_text(text)
    with pytest.raises(EngineError, match=says):
        load("tensorrt")


def test_a_module_without_classes_offers_nothing() -> None:
    row = examine(ModuleType("tensorrt"))
    assert row == _features("absent", "")
