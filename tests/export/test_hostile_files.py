"""Files that are not what they should be: one clear error each, and nothing read that should not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from crate_dsl.compiler import onnx_files
from crate_dsl.compiler.runtime import open_session, read_metadata
from crate_dsl.language.diagnostics import UserError


@pytest.fixture
def file(exported: Path, tmp_path: Path) -> Path:
    """A copy of a good file, to spoil."""
    copy = tmp_path / "images.onnx"
    copy.write_bytes((exported / "images.onnx").read_bytes())
    return copy


def refused(file: Path, match: str) -> None:
    for read in (open_session, read_metadata):
        with pytest.raises(UserError, match=match):
            read(file)


def change(file: Path, spoil: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.ModelProto.FromString(file.read_bytes())
    spoil(model)
    file.write_bytes(model.SerializeToString())


def set_entry(model: onnx.ModelProto, name: str, text: str) -> None:
    (entry,) = [entry for entry in model.metadata_props if entry.key == f"crate_dsl.{name}"]
    entry.value = text


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing.onnx", "cannot be read: No such file")
    refused(tmp_path, "is a folder, not an ONNX file")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\0" * 1000, b"\xff" * 1000, bytes(range(256)) * 40, b"\x0a\x05" * 500]
)
def test_junk(tmp_path: Path, content: bytes) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(content)
    refused(junk, "is not an ONNX file")


def test_cut_off(file: Path) -> None:
    whole = file.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(whole) * 3 // 4, size=40):
        file.write_bytes(whole[:length])
        refused(file, "cut off|damaged")


def test_scrambled_files_never_crash(file: Path) -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(40):
        spoiled = whole.copy()
        spoiled[rng.integers(len(whole), size=8)] = rng.integers(256, size=8)
        file.write_bytes(spoiled.tobytes())
        with suppress(UserError):
            open_session(file)


def test_too_large(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "MAXIMUM_BYTES", 1000)
    refused(file, "is larger than any ONNX file")


def test_an_onnx_file_of_somebody_else(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([], "g", [value], [value]))
    onnx.save(model, str(tmp_path / "other.onnx"))
    refused(tmp_path / "other.onnx", "is not an ONNX file that crate-dsl wrote")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("inputs", "[" * 100_000),
        ("inputs", "{"),
        ("inputs", '{"image": {"kind": "complex", "shape": []}}'),
        ("spec", "[]"),
        ("target", "3"),
        ("proof", '"passed"'),
    ],
)
def test_broken_metadata(file: Path, name: str, text: str) -> None:
    change(file, lambda model: set_entry(model, name, text))
    refused(file, "is not an ONNX file that crate-dsl wrote, or it is damaged")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs", {"picture": {"kind": "float", "shape": []}}),
        ("inputs", {"image": {"kind": "float", "shape": [{"offset": 3}]}}),
        ("inputs", {"image": {"kind": "bool", "shape": [{"offset": 3}, {"offset": 4}, {"offset": 6}]}}),
        ("draws", {"image": {"word": "dream"}}),
        ("draws", {"image": {"word": "choose", "ratio": 7}}),
        ("draws", {"image": {"word": "shuffle"}}),
    ],
)
def test_metadata_that_do_not_describe_the_network(file: Path, name: str, value: object) -> None:
    change(file, lambda model: set_entry(model, name, json.dumps(value)))
    with pytest.raises(UserError, match="is damaged"):
        open_session(file)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret", "..", "", "a/b", "a\\b", "C:secret", "missing"]
)
@pytest.mark.parametrize("place", ["initializer", "function", "subgraph"])
def test_weights_elsewhere_are_not_read(file: Path, location: str, place: str) -> None:
    (file.parent.parent / "secret").write_bytes(b"\0" * 4096)

    def spoil(model: onnx.ModelProto) -> None:
        tensor = TensorProto(
            name="w", data_type=TensorProto.FLOAT, dims=[10], data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value=location)
        if place == "initializer":
            model.graph.initializer.append(tensor)
        elif place == "function":
            model.functions[0].node.append(helper.make_node("Constant", [], ["w"], value=tensor))
        else:
            inner = helper.make_graph([], "inner", [], [], [tensor])
            model.graph.node.append(helper.make_node("If", ["c"], [], then_branch=inner, else_branch=inner))

    change(file, spoil)
    refused(file, "only a file beside it is read" if location != "missing" else "not beside it")


def test_a_network_that_onnxruntime_refuses(file: Path) -> None:
    change(file, lambda model: model.graph.node.append(helper.make_node("Nonsense", ["image"], ["y"])))
    with pytest.raises(UserError, match="onnxruntime cannot open"):
        open_session(file)


def test_the_spec_comes_back(exported: Path) -> None:
    metadata = read_metadata(exported / "images.onnx")
    assert metadata.text.startswith("# A small classifier.\nmodel images(")
    assert metadata.target.model == "images" and metadata.target.settings["patch"] == 2
    assert metadata.proof is not None and len(metadata.proof["rows"]) == 6
