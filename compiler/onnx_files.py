"""Reading ONNX files that may be anything: what is not a file that crate-dsl wrote is refused before it is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from os import PathLike
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from crate_dsl.compiler.metadata import Metadata, from_properties
from crate_dsl.language.diagnostics import UserError

#: One protobuf holds less than this.
MAXIMUM_BYTES = 2**31 - 1


def read_model(path: str | PathLike[str]) -> tuple[ModelProto, Metadata]:
    """An exported file, without weights that lie beside it, and its metadata.

    Raises:
        UserError: there is no such file, it is damaged, it was not written by crate-dsl, or it would read other files
            than the weights beside it.
    """
    file = Path(path)
    if file.is_dir():
        raise UserError(f"`{file}` is a folder, not an ONNX file")
    try:
        if file.stat().st_size > MAXIMUM_BYTES:
            raise UserError(f"`{file}` is larger than any ONNX file")
        model = ModelProto.FromString(file.read_bytes())
    except OSError as problem:
        raise UserError(f"`{file}` cannot be read: {problem.strerror}") from problem
    except DecodeError as problem:
        raise UserError(f"`{file}` is not an ONNX file, or it is cut off") from problem
    if not model.HasField("graph"):
        raise UserError(f"`{file}` is not an ONNX file, or it is cut off: it holds no network")
    try:
        metadata = from_properties({_text(entry.key): _text(entry.value) for entry in model.metadata_props})
        locations = external_locations(model)
    except ValueError as problem:
        raise UserError(
            f"`{file}` is not an ONNX file that crate-dsl wrote, or it is damaged: {problem}"
        ) from problem
    for location in locations:
        _check_location(file, location)
    return model, metadata


def read_metadata(path: str | PathLike[str]) -> Metadata:
    """What an exported file says of itself: `.text` is its spec.

    Raises:
        UserError: as `read_model`.
    """
    return read_model(path)[1]


def _check_location(file: Path, location: str) -> None:
    """Weights may lie in a file beside the model, and nowhere else."""
    if not location or location in (".", "..") or any(sign in location for sign in "/\\:\0"):
        raise UserError(f"`{file}` asks for weights from `{location}`: only a file beside it is read")
    if not file.with_name(location).is_file():
        raise UserError(
            f"`{file}` has its weights in `{location}`, which is not beside it", "keep the two files together"
        )


def external_locations(model: ModelProto) -> set[str]:
    """The files that a model reads tensors from: by initializers, by constants, in functions and in nested graphs."""
    tensors = chain(_graph_tensors(model.graph), *(_node_tensors(f.node) for f in model.functions))
    return {
        _text(entry.value)
        for tensor in tensors
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _text(value: str | bytes) -> str:
    """A text of the file: protobuf hands over bytes where it is not UTF-8."""
    if isinstance(value, bytes):
        raise ValueError(f"{value[:20]!r} is no text")
    return value


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    yield attribute.t
    yield from attribute.tensors
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    for graph in (attribute.g, *attribute.graphs):
        yield from _graph_tensors(graph)
