"""What runs a network in its module's place: torch's compiler, ONNX Runtime, OpenVINO."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from hasten.errors import HastenError, MissingExtraError
from hasten.processes import unbroken
from hasten.runtime.network import Inputs, Network, quietly
from hasten.workload.einsum import Workload

Described = Callable[[Workload], Workload]

_OPSET = 17


def cpp_compiler() -> str | None:
    """The C++ compiler that torch's own compiler would call; None where there is none."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


class CompiledEngine:
    """torch.compile, with weights frozen into the program.

    Args:
        network: whose module it is; it is compiled by a call with its inputs. Other shapes are compiled when they come.
        described: see `NetworkEngine`.

    Raises:
        Exception: what torch's compiler raises.
    """

    def __init__(self, network: Network, described: Described) -> None:
        self.described = described
        self.nbytes = network.held_bytes
        self._call = torch.compile(network.module, dynamic=False)
        self._known: set[tuple[Any, ...]] = set()
        self(*network.inputs.args, **network.inputs.kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shapes = tuple((t.shape, t.dtype) for t in Inputs(args, kwargs).tensors)
        with torch.no_grad():
            if shapes in self._known:
                return self._call(*args, **kwargs)
            # The option of torch.compile reaches too little of the compiler.
            with quietly(), torch._inductor.config.patch(freezing=True):
                answer = self._call(*args, **kwargs)
        self._known.add(shapes)
        return answer


class _Flat(nn.Module):
    """A module as exporters take it: tensors in order give tensors in order.

    Args:
        module: what is called.
        inputs: an example; what of them is no tensor is given as it is.
    """

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.module = module
        self._given, self._spec = tree_flatten((inputs.args, dict(inputs.kwargs)))
        with torch.no_grad():
            answer = module(*inputs.args, **inputs.kwargs)
        self.answer, self.answer_spec = tree_flatten(answer)
        self.eval()  # exporters put back the mode of the whole

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        left = iter(tensors)
        given = [next(left) if isinstance(v, Tensor) else v for v in self._given]
        args, kwargs = tree_unflatten(given, self._spec)
        found = tree_flatten(self.module(*args, **kwargs))[0]
        return tuple(t for t in found if isinstance(t, Tensor))


class _Exported:
    """What engines share that were given a network of fixed shapes.

    Args:
        network: what they were given.
        name: of the engine, for people.
        described: see `NetworkEngine`.
    """

    nbytes: int

    def __init__(self, network: Network, name: str, described: Described) -> None:
        self.described = described
        self._name = name
        self._inputs = network.inputs.tensors
        self._flat: _Flat | None = _Flat(network.module, network.inputs)
        if not self._inputs:
            raise HastenError(f"{name} takes tensors, and {network.name} is called with none")
        if odd := [t.dtype for t in self._inputs if t.dtype is torch.bfloat16]:
            raise HastenError(f"{name} takes no {str(odd[0]).removeprefix('torch.')} inputs")
        self._answer, self._answer_spec = self._flat.answer, self._flat.answer_spec

    def run(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """Answers, as arrays, to inputs as arrays."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = Inputs(args, kwargs).tensors
        if [(t.shape, t.dtype) for t in given] != [(t.shape, t.dtype) for t in self._inputs]:
            asked = Inputs(tuple(self._inputs)).title
            raise HastenError(
                f"{self._name} was given this network for {asked}: tune it for {Inputs(args, kwargs).title} too"
            )
        found = iter(self.run([t.detach().numpy() for t in given]))
        leaves = [torch.as_tensor(next(found)) if isinstance(v, Tensor) else v for v in self._answer]
        return tree_unflatten(leaves, self._answer_spec)


def to_onnx(flat: _Flat, tensors: Sequence[Tensor]) -> bytes:
    """A module as an ONNX model of fixed shapes."""
    file = io.BytesIO()
    names = [f"input{i}" for i in range(len(tensors))]
    with torch.no_grad(), quietly(), contextlib.redirect_stdout(io.StringIO()):
        exported: Any = file
        torch.onnx.export(flat, tuple(tensors), exported, input_names=names, opset_version=_OPSET, dynamo=False)
    return file.getvalue()


def in_int8(model: bytes, examples: Sequence[Inputs]) -> bytes:
    """An ONNX model with the weights and inputs of its products in int8, scales found on examples.

    Weights have a scale for each output channel, inputs one for each tensor. What lies between products is in int8 too,
    but for networks that attend: their scores and normalizations have a few numbers that are far larger than the rest.

    Raises:
        MissingExtraError: ONNX Runtime or onnx is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError:
        raise MissingExtraError("onnxruntime with onnx", "onnxruntime") from None

    attends = any(node.op_type == "Softmax" for node in onnx.load_from_string(model).graph.node)
    narrow: dict[str, Any] = {}
    if attends:
        products = ["Conv", "ConvTranspose", "MatMul", "Gemm"]
        narrow = {"op_types_to_quantize": products, "extra_options": {"MatMulConstBOnly": True}}

    class Examples(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter([{f"input{i}": t.numpy() for i, t in enumerate(e.tensors)} for e in examples])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    with tempfile.TemporaryDirectory() as folder, quietly(), contextlib.redirect_stdout(io.StringIO()):
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        before.write_bytes(model)
        quantize_static(
            before, after, Examples(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, **narrow,
        )  # fmt: skip
        return after.read_bytes()


ONNX, ONNX_INT8, OPENVINO = "onnx", "onnx int8", "openvino"
"""Formats that networks are exported to, see `Network.derived`."""


def _exported(network: Network, flat: _Flat, int8: bool) -> bytes:
    """A network as an ONNX model; made once where several engines take the same."""
    known = network.derived
    if ONNX not in known:
        known[ONNX] = to_onnx(flat, network.inputs.tensors)
    if int8 and ONNX_INT8 not in known:
        known[ONNX_INT8] = in_int8(known[ONNX], network.examples)
    found: bytes = known[ONNX_INT8 if int8 else ONNX]
    return found


class OnnxEngine(_Exported):
    """ONNX Runtime on the processor, all its optimizations on, with as many threads as torch has.

    Args:
        network: exported for the shapes of its inputs.
        int8: weights and inputs of products in int8.
        described: see `NetworkEngine`.

    Raises:
        MissingExtraError: it is not installed.
        Exception: what the export or ONNX Runtime raises.
    """

    def __init__(self, network: Network, int8: bool, described: Described) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError("onnxruntime", "onnxruntime") from None
        super().__init__(network, "ONNX Runtime", described)
        assert self._flat is not None
        model = _exported(network, self._flat, int8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._names = [i.name for i in self._session.get_inputs()]
        self.nbytes, self._flat = len(model), None

    def run(self, arrays: Sequence[Any]) -> Sequence[Any]:
        known = {f"input{i}": a for i, a in enumerate(arrays)}
        # An input that no answer depends on is none of the exported model.
        found: Sequence[Any] = self._session.run(None, {name: known[name] for name in self._names})
        return found


class OpenVinoEngine(_Exported):
    """OpenVINO on the processor, for the shortest time of one call, with as many threads as torch has.

    Args:
        network: exported for the shapes of its inputs.
        numbers: ``fp32``, ``bf16``, or ``int8`` for weights and inputs of products.
        described: see `NetworkEngine`.

    Raises:
        MissingExtraError: it is not installed, or for int8 ONNX Runtime is not, which finds the scales.
        Exception: what the export or OpenVINO raises.
    """

    def __init__(self, network: Network, numbers: str, described: Described) -> None:
        try:
            import openvino
        except ImportError:
            raise MissingExtraError("openvino", "openvino") from None
        super().__init__(network, "OpenVINO", described)
        assert self._flat is not None
        core = openvino.Core()
        if numbers == "int8":
            model = core.read_model(_exported(network, self._flat, int8=True))
        else:
            if OPENVINO not in network.derived:
                with torch.no_grad(), quietly(), unbroken():  # its C++ asks Python what the network's parts are
                    shapes = [tuple(t.shape) for t in self._inputs]
                    network.derived[OPENVINO] = openvino.convert_model(
                        self._flat, example_input=tuple(self._inputs), input=shapes
                    )
            model = network.derived[OPENVINO]
        self.nbytes = sum(
            op.get_data_size() if hasattr(op, "get_data_size") else op.data.nbytes
            for op in model.get_ops()
            if op.get_type_name() == "Constant"
        )
        settings = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if numbers == "bf16" else "f32",
        }  # fmt: skip
        compiled = core.compile_model(model, "CPU", settings)
        self._request, self._outputs, self._flat = compiled.create_infer_request(), compiled.outputs, None
        self._places = (
            [int(i.get_any_name().removeprefix("input")) for i in compiled.inputs] if numbers == "int8" else None
        )

    def run(self, arrays: Sequence[Any]) -> Sequence[Any]:
        given = list(arrays) if self._places is None else [arrays[i] for i in self._places]
        found = self._request.infer(given, share_inputs=True, share_outputs=False)
        return [found[output] for output in self._outputs]


def fused(workload: Workload, engine: str) -> Workload:
    """``workload`` as one program computes it."""
    return replace(workload, attributes={**workload.attributes, "engine": engine})
