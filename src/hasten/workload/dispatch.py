"""What torch is asked for while a program is traced goes to the handlers of `hasten.workload.operators`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor as TorchTensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from hasten.errors import HastenError
from hasten.workload.fakes import Fakes
from hasten.workload.operators import TABLE, Call, elementwise, unknown
from hasten.workload.operators.attention import attention
from hasten.workload.operators.call import bound, written
from hasten.workload.operators.recurrent import recurrent
from hasten.workload.recorder import Recorder

_FUNCTIONS = {"_grouped_mm", "scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu"}


class Functions(TorchFunctionMode):
    """Catches what torch would take apart differently on every device: attention and recurrent layers."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _FUNCTIONS:
            args = tree_map(self.tracer.twin, args)
            kwargs = tree_map(self.tracer.twin, kwargs)
            if name == "scaled_dot_product_attention":
                return self._attention(*args, **kwargs)
            if name == "_grouped_mm":
                return self._grouped_mm(*args, **kwargs)
            if (
                len(args) == 9
                and isinstance(args[1], tuple | list | TorchTensor)
                and not isinstance(args[3], list | tuple)
            ):
                return self._recurrent(name, *args)
        return func(*args, **kwargs)

    def _empty(self, shape: Sequence[int], like: TorchTensor) -> TorchTensor:
        with self.tracer.quiet():
            return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)

    def _attention(
        self,
        query: TorchTensor,
        key: TorchTensor,
        value: TorchTensor,
        attn_mask: TorchTensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> TorchTensor:
        with self.tracer.quiet():
            lead = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
        if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
            raise HastenError(
                f"attention over q {tuple(query.shape)}, k {tuple(key.shape)}, v {tuple(value.shape)}: "
                "check the last two dimensions"
            )
        middle, length, width = query.shape[-3:-2], query.shape[-2], value.shape[-1]
        if len(middle) and len(lead) == 1 and query.shape[-1] == width:
            # The fused kernels lay a query's heads side by side, so that joining them is a view.
            with self.tracer.quiet():
                output = self._empty((*lead, length, *middle, width), query).transpose(1, 2)
        else:
            output = self._empty((*lead, *middle, length, width), query)
        name = "aten::scaled_dot_product_attention" + ("(causal)" if is_causal else "")
        arguments = {"query": query, "key": key, "value": value, "attn_mask": attn_mask, "scale": scale}
        call = Call(self.tracer.recorder, name, arguments, [output])
        attention(call, query, key, value, attn_mask, output)
        return output

    def _grouped_mm(
        self,
        mat_a: TorchTensor,
        mat_b: TorchTensor,
        offs: TorchTensor | None = None,
        bias: TorchTensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> TorchTensor:
        # Its shape function accepts bf16 alone, the operator any dtype.
        lead = (mat_b.shape[0],) if mat_a.dim() == 3 else (len(offs),) if mat_b.dim() == 2 and offs is not None else ()
        rows = mat_a.shape[-2] if mat_a.dim() == 3 or mat_b.dim() == 2 else mat_a.shape[0]
        with self.tracer.quiet():
            output = torch.empty((*lead, rows, mat_b.shape[-1]), dtype=out_dtype or mat_a.dtype, device=mat_a.device)
        arguments = {"self": mat_a, "mat2": mat_b, "offs": offs}
        TABLE["aten::_grouped_mm"](Call(self.tracer.recorder, "aten::_grouped_mm", arguments, [output]))
        return output if bias is None else output + bias

    def _recurrent(
        self,
        kind: str,
        x: TorchTensor,
        hidden: Any,
        weights: Sequence[TorchTensor],
        biased: bool,
        layers: int,
        dropout: float,
        training: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        states = [hidden] if isinstance(hidden, TorchTensor) else list(hidden)
        directions = 2 if bidirectional else 1
        # With a projection (LSTM's proj_size) the hidden state is narrower: torch's own decomposition.
        per = len(weights) // (layers * directions)
        if per not in (2, 4):
            raise HastenError("cannot trace an LSTM with proj_size: build it with proj_size=0")
        width = states[0].shape[-1] * directions
        output = self._empty((*x.shape[:-1], width), x)
        last = [self._empty(s.shape, s) for s in states]
        call = Call(self.tracer.recorder, f"aten::{kind}", {"input": x}, [output, *last])
        recurrent(call, kind, layers, directions, x, list(weights), biased, not batch_first, states)
        return (output, *last)


class Tracer(TorchDispatchMode):
    """Runs every operator on fake tensors and hands it to its handler."""

    def __init__(self, recorder: Recorder, fakes: Fakes) -> None:
        super().__init__()
        self.recorder = recorder
        self.fakes = fakes
        self.silent = 0

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Operators in this context are not part of the traced program."""
        self.silent += 1
        try:
            yield
        finally:
            self.silent -= 1

    def twin(self, value: Any) -> Any:
        if isinstance(value, TorchTensor):
            return self.fakes.of(value)
        # A module on the meta device builds its masks and positions there; the trace has one device.
        if isinstance(value, torch.device) and value.type == "meta":
            return torch.device("cpu")
        return value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(self.twin, args), tree_map(self.twin, kwargs or {})
        if func is torch.ops.prim.device.default:
            return torch.device("cpu")
        schema = func._schema
        name = schema.name
        handler = TABLE.get(name)
        if handler is None and not self.silent and not func.is_view and not _pointwise(func):
            with self:
                taken_apart = func.decompose(*args, **kwargs)
            if taken_apart is not NotImplemented:
                return taken_apart
        result = func(*args, **kwargs)
        if self.silent:
            return result
        arguments = bound(schema, args, kwargs)
        places = written(schema, arguments)
        outputs = [t for t in tree_flatten(result)[0] if isinstance(t, TorchTensor)]
        outputs = outputs or [t for t in tree_flatten(places)[0] if isinstance(t, TorchTensor)]
        call_inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, TorchTensor)]
        if not places and outputs and _all_views(outputs, call_inputs):
            return result
        if any(isinstance(a, TorchTensor) for a in places):
            arguments = {k: v for k, v in arguments.items() if not _is_out(schema, k)}
        call = Call(self.recorder, name, arguments, outputs)
        if handler is not None:
            handler(call)
        elif _pointwise(func):
            elementwise(call)
        elif outputs:
            unknown(call)
        return result


def _pointwise(func: Any) -> bool:
    """Whether torch tags an operator, or what it is the in-place form of, as element-wise."""
    if torch.Tag.pointwise in func.tags:
        return True
    space, name = func._schema.name.split("::")
    if not name.endswith("_"):
        return False
    packet = getattr(getattr(torch.ops, space), name.removesuffix("_"), None)
    return packet is not None and any(
        torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads()
    )


def _is_out(schema: Any, name: str) -> bool:
    return any(a.name == name and a.is_out for a in schema.arguments)


def _all_views(outputs: Sequence[TorchTensor], inputs: Sequence[TorchTensor]) -> bool:
    storages = {t.untyped_storage()._cdata for t in inputs}
    return all(t.untyped_storage()._cdata in storages for t in outputs)


@contextmanager
def recording(recorder: Recorder, mode: FakeTensorMode) -> Iterator[None]:
    """What torch is asked for in this context goes to ``recorder``; tensors made here are fake."""
    tracer = Tracer(recorder, Fakes(mode))
    with torch.no_grad(), mode, tracer, Functions(tracer):
        yield
