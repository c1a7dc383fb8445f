"""An ONNX model as tables: its functions and its nodes, named as in the spec."""

from __future__ import annotations

from collections import Counter

from onnx import ModelProto, TypeProto, ValueInfoProto
from onnx.helper import tensor_dtype_to_string

from crate_dsl.show.columns import columns, wrapped
from crate_dsl.show.folding import folded, unfolded

#: How wide the columns of nodes may be: name, repeats, function, output.
MOST = (34, 5, 15, 20)


def onnx_text(model: ModelProto, *, fold: bool = True) -> str:
    """The functions with what they are made of, and the nodes in order; with `fold`, equal layers are one line."""
    versions = ", ".join(f"{item.domain or 'ai.onnx'} {item.version}" for item in model.opset_import)
    head = f"{model.graph.name}: ONNX, {versions}; {len(model.graph.initializer):,} tensors of weights"
    lines = [wrapped(head), ""]
    for function in model.functions:
        kinds = Counter(node.op_type for node in function.node)
        made = ", ".join(f"{kind} ×{count}" if count > 1 else kind for kind, count in kinds.items())
        lines.append(wrapped(f"{function.name}({', '.join(function.input)})", "", "    "))
        lines.append(wrapped(made, "    "))
    types = {item.name: _type(item) for item in (*model.graph.value_info, *model.graph.output)}
    nodes = model.graph.node
    facts = [(node.op_type, ", ".join(types.get(name, "") for name in node.output)) for node in nodes]
    found = (folded if fold else unfolded)([node.name for node in nodes], facts)
    rows = [("node", "", "function", "output")]
    rows += [(item.name, f"×{item.count}" if item.count > 1 else "", *item.key) for item in found]
    ends = [("input", item.name, _type(item)) for item in model.graph.input]
    ends += [("output", item.name, _type(item)) for item in model.graph.output]
    return "\n".join([*lines, "", *columns(ends, "lll"), "", *columns(rows, "lrll", MOST)])


def _type(item: ValueInfoProto) -> str:
    tensor: TypeProto.Tensor = item.type.tensor_type
    sizes = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{tensor_dtype_to_string(tensor.elem_type).removeprefix('TensorProto.').lower()}[{sizes}]"
