"""An ONNX graph, written node by node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from berthead import __version__
from berthead.errors import ModelError, UsageError
from berthead.model.capabilities import activation_name

# What every runtime of the last years reads; LayerNormalization is the newest operator used.
OPSET, IR_VERSION = 17, 8
# Weights from this size on lie in a file beside the graph, each on a page of its own: it is mapped, not read.
LARGE, PAGE = 1024, 4096
INSTALL = "pip install 'berthead[onnx]'"


class Graph:
    """Nodes and weights of a graph; every value has a name.

    Args:
        path: the file of the graph; the weights go into `<path>.data`.

    Raises:
        UsageError: the package `onnx` is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnx
        except ImportError as error:
            raise UsageError("--onnx", f"needs a package ({error})", "", f"Install it: {INSTALL}") from error
        self._onnx, self.path = onnx, path
        self.data = path.with_name(f"{path.name}.data")
        self.data.touch()
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._known: dict[Any, str] = {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        return self.parts(operator, 1, *inputs, **attributes)[0]

    def parts(self, operator: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs; returns their names."""
        name = f"{operator}_{len(self._nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{number}" for number in range(outputs)]
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, names, name, **attributes))
        return names

    def once(self, key: Any, make: Callable[[], str]) -> str:
        """A value that several nodes share, made at first use."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def weight(self, name: str, values: Tensor | np.ndarray) -> str:
        """Add a weight; each name is added once."""
        if name not in self._weights:
            array = np.ascontiguousarray(values.detach().cpu().numpy() if isinstance(values, Tensor) else values)
            small = array.nbytes < LARGE
            self._weights[name] = self._onnx.numpy_helper.from_array(array, name) if small else self._put(name, array)
        return name

    def whole(self, *numbers: int) -> str:
        """Whole numbers, int64 [n]."""
        return self.weight(f"int64 {list(numbers)}", np.array(numbers, dtype=np.int64))

    def number(self, value: float) -> str:
        """A number, float32 []."""
        return self.weight(f"float32 {value!r}", np.array(value, dtype=np.float32))

    def linear(self, name: str, layer: nn.Linear, values: str) -> str:
        """[..., in] -> [..., out]."""
        product = self.add("MatMul", values, self.weight(f"{name}.weight", layer.weight.t()))
        return product if layer.bias is None else self.add("Add", product, self.weight(f"{name}.bias", layer.bias))

    def norm(self, name: str, layer: nn.Module, values: str) -> str:
        """A layer norm over the last axis; without a norm the values are unchanged.

        Raises:
            ModelError: another kind of norm.
        """
        if type(layer) is nn.Identity:
            return values
        if type(layer) is not nn.LayerNorm:
            raise _unknown("norm", layer)
        bias = [] if layer.bias is None else [self.weight(f"{name}.bias", layer.bias)]
        weight = self.weight(f"{name}.weight", layer.weight)
        return self.add("LayerNormalization", values, weight, *bias, axis=-1, epsilon=layer.eps)

    def activation(self, layer: nn.Module, values: str) -> str:
        """An element-wise function.

        Raises:
            ModelError: it is not one of our encoders' and heads'.
        """
        match activation_name(layer):
            case "gelu" | "gelu_pytorch_tanh" as name:
                return self._gelu(values, exact=name == "gelu")
            case "silu":
                return self.add("Mul", values, self.add("Sigmoid", values))
            case "relu":
                return self.add("Relu", values)
            case "tanh":
                return self.add("Tanh", values)
            case _:
                raise _unknown("activation", layer)

    def save(self, inputs: dict[str, list[str]], output: str, axes: list[str | int], about: dict[str, str]) -> None:
        """Write the graph: the same bytes for the same function.

        Args:
            inputs: int64 values by name, each with its axes.
            output: the output value, float32, named `logits`.
            axes: its axes.
            about: the file's metadata, by name; viewers show the text under `doc`.
        """
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        self._nodes.append(helper.make_node("Identity", [output], ["logits"], "logits"))
        asked = [helper.make_tensor_value_info(name, kinds.INT64, shape) for name, shape in inputs.items()]
        answer = helper.make_tensor_value_info("logits", kinds.FLOAT, axes)
        graph = helper.make_graph(self._nodes, "berthead", asked, [answer], list(self._weights.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="berthead",
            producer_version=__version__, doc_string=about["doc"],
        )  # fmt: skip
        helper.set_model_props(model, {name: text for name, text in about.items() if name != "doc"})
        self.path.write_bytes(model.SerializeToString(deterministic=True))

    def _gelu(self, values: str, exact: bool) -> str:
        """x / 2 * (1 + erf(x / sqrt 2)), in the order that runtimes recognise, or its approximation by tanh."""
        if exact:
            raised = self.add("Erf", self.add("Div", values, self.number(2**0.5)))
        else:
            cubed = self.add("Mul", self.add("Mul", values, values), values)
            inner = self.add("Add", values, self.add("Mul", cubed, self.number(0.044715)))
            raised = self.add("Tanh", self.add("Mul", inner, self.number((2 / np.pi) ** 0.5)))
        return self.add("Mul", self.add("Mul", values, self.add("Add", raised, self.number(1))), self.number(0.5))

    def _put(self, name: str, array: np.ndarray) -> Any:
        """Add a weight to the file beside the graph."""
        with self.data.open("ab") as file:
            file.write(b"\0" * (-file.tell() % PAGE))
            place = {"location": self.data.name, "offset": file.tell(), "length": array.nbytes}
            file.write(array.data)
        kinds = self._onnx.TensorProto
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = kinds(name=name, dims=array.shape, data_type=kind, data_location=kinds.EXTERNAL)
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def _unknown(what: str, layer: nn.Module) -> ModelError:
    return ModelError("ONNX export", f"the {what} {type(layer).__name__} is not supported", "one of a supported family")
