"""What tests of a step share: the step in torch with perturbed weights, and the step in ONNX, side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor

from crate_dsl.compiler.functions import DOMAIN, OPSET, Body
from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.operators import Operator, Typing, Weight, ports
from crate_dsl.compiler.steps import onnx_face, torch_face
from crate_dsl.compiler.types import TensorType


@dataclass
class Step:
    """One step at one input type: `module` in torch; called by the names of ports and borrowed weights."""

    operator: Operator
    inputs: tuple[TensorType, ...]
    typing: Typing
    module: StepModule

    def onnx(self, *arrays: Tensor, **named: Tensor) -> tuple[np.ndarray, ...]:
        """The step's ONNX function in onnxruntime, after the checker's full shape inference."""
        own = {name: value.detach() for name, value in self.module.named_parameters()}
        given = {f"x{i}": array for i, array in enumerate(arrays)} | own | named
        keywords = [name for name in given if not name.startswith("x") or not name[1:].isdigit()]
        body = Body()
        face = onnx_face(type(self.operator))
        results = face(
            body,
            self.operator,
            self.typing,
            *[f"x{i}" for i in range(len(arrays))],
            **{k: k for k in keywords},
        )
        results = (results,) if isinstance(results, str) else results
        function = body.function(self.operator.word, list(given), list(results))
        outputs = [f"y{i}" for i in range(len(results))]
        node = helper.make_node(self.operator.word, list(given), outputs, domain=DOMAIN)
        graph_inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.numpy().dtype), list(value.shape)
            )
            for name, value in given.items()
        ]
        kinds = {
            "float": onnx.TensorProto.FLOAT,
            "index": onnx.TensorProto.INT64,
            "bool": onnx.TensorProto.BOOL,
        }
        graph_outputs = [
            helper.make_tensor_value_info(
                name, kinds[type_.kind], [None if type_.flat else "B", *[None] * (type_.rank - type_.flat)]
            )
            for name, type_ in zip(outputs, self.typing.outputs, strict=True)
        ]
        model = helper.make_model(
            helper.make_graph([node], "step", graph_inputs, graph_outputs),
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
            functions=[function],
            ir_version=10,
        )
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return tuple(session.run(None, {name: value.numpy() for name, value in given.items()}))


def step(operator: Operator, *inputs: TensorType, seed: int = 0) -> Step:
    """The step at these input types, its weights perturbed: no zero bias, no unit scale, no symmetric dictionary."""
    typing = operator.infer(*inputs)
    module = torch_face(type(operator))(operator, typing)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            base = 1.0 if name.endswith("weight") and parameter.dim() == 1 else 0.0
            parameter.copy_(base + 0.3 * noise)
    return Step(operator, inputs, typing, module.eval())


def borrowed(item: Step) -> dict[str, Weight]:
    """The weights that the step takes from elsewhere."""
    return {name: weight for name, weight in item.typing.weights.items() if isinstance(weight, Weight)}


__all__ = ["Step", "borrowed", "ports", "replace", "step"]
