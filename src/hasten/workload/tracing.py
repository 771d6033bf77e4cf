"""Tracing: what a torch program computes, found by running it on fake tensors.

Nothing is computed and no parameter is materialised: a tensor is its shape, dtype and storage identity. So
views cost nothing, an in-place operator writes where its argument lives, and tied weights are one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor as TorchTensor
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from hasten import dtypes
from hasten.errors import HastenError
from hasten.workload import operators
from hasten.workload.einsum import Access, Cascade, Einsum, Op, Phase, Role, Tensor, Workload


@dataclass
class _Known:
    """A traced storage: which tensor of the cascade it is now."""

    name: str
    role: Role


class Recorder:
    """Collects Einsums and tensors while a program runs on fake tensors."""

    def __init__(self) -> None:
        self.einsums: list[Einsum] = []
        self.tensors: dict[str, Tensor] = {}
        self.unknown: dict[str, None] = {}
        self.path = ""
        self._storages: dict[int, _Known] = {}
        self._keep: list[Any] = []  # storages stay alive, so that their identities stay unique
        self._outputs: set[str] = set()
        self._counter = 0
        self._kernels = 0

    # --- names

    def next_kernel(self) -> int:
        self._kernels += 1
        return self._kernels - 1

    def bind(self, tensor: TorchTensor, name: str, role: Role, shape: Sequence[int] | None = None) -> None:
        """Declares that ``tensor``'s storage is the tensor ``name``; the first declaration holds."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._storages:
            return
        self._keep.append(storage)
        self._storages[storage._cdata] = _Known(name, role)
        size = tuple(int(n) for n in (tensor.shape if shape is None else shape))
        self.tensors[name] = Tensor(name, size, _dtype(tensor.dtype), role)

    def describe(self, tensor: TorchTensor, shape: Sequence[int], dtype: str) -> None:
        """Corrects a packed tensor's shape and dtype to what its bytes mean."""
        name = self.name_of(tensor)
        self.tensors[name] = Tensor(name, tuple(int(n) for n in shape), dtype, self.tensors[name].role)

    def elements_of(self, tensor: TorchTensor) -> int:
        return self.tensors[self.name_of(tensor)].elements

    def name_of(self, tensor: TorchTensor | str) -> str:
        """The cascade's name of a tensor, or of the tensor that it is a view of."""
        if isinstance(tensor, str):
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            elements = storage.nbytes() // max(tensor.element_size(), 1)
            shape = tuple(tensor.shape) if elements == tensor.numel() else (int(elements),)
            self.bind(tensor, self._new_name(), Role.INTERMEDIATE, shape)
        return self._storages[storage._cdata].name

    def same_storage(self, a: TorchTensor, b: TorchTensor) -> bool:
        return a.untyped_storage()._cdata == b.untyped_storage()._cdata

    def known(self, tensor: TorchTensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def temporary(self, shape: Sequence[int], dtype: torch.dtype) -> str:
        name = self._new_name()
        self.tensors[name] = Tensor(name, tuple(int(n) for n in shape), _dtype(dtype), Role.INTERMEDIATE)
        return name

    def _new_name(self) -> str:
        self._counter += 1
        return f"t{self._counter - 1}"

    def _written(self, tensor: TorchTensor) -> str:
        """The name under which ``tensor`` is written.

        Writing all of an intermediate again makes a new value, so it gets a new name; a weight, a state or
        a part of something keeps its own.
        """
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        full = tensor.numel() * tensor.element_size() >= storage.nbytes()
        if known is None:
            return self.name_of(tensor)
        again = known.name in self._outputs or known.role is Role.INPUT
        if full and again and known.role in (Role.INTERMEDIATE, Role.INPUT):
            del self._storages[storage._cdata]
            return self.name_of(tensor)
        return known.name

    # --- Einsums

    def emit(
        self,
        op: Op,
        ranks: tuple[tuple[str, int], ...],
        inputs: tuple[Access, ...],
        output: TorchTensor | str,
        output_ranks: tuple[str, ...],
        *,
        elements: int | None,
        map: str,
        reduce: str | None,
        iterative: tuple[str, ...],
        kernel: int,
        source: str,
    ) -> None:
        """Adds an Einsum; sizes become plain ints and redundant element counts are dropped."""
        ranks = tuple((name, int(size)) for name, size in ranks)
        sizes = dict(ranks)
        name = output if isinstance(output, str) else self._written(output)

        self._outputs.add(name)

        def plain(access: Access) -> Access:
            product = math.prod(sizes[r] for r in access.ranks)
            if access.elements is None or int(access.elements) == product:
                return Access(access.tensor, access.ranks)
            return Access(access.tensor, access.ranks, int(access.elements))

        self.einsums.append(
            Einsum(
                name=f"e{len(self.einsums)}",
                op=op,
                ranks=ranks,
                inputs=tuple(plain(a) for a in inputs),
                output=plain(Access(name, output_ranks, elements)),
                map=map,
                reduce=reduce,
                iterative=iterative,
                module=self.path,
                kernel=kernel,
                source=source,
            )
        )

    def repeat(self, einsums: Sequence[Einsum], names: dict[str, str], path: Callable[[str], str]) -> None:
        """Adds Einsums once more, as new launches.

        Args:
            names: old tensor name -> new one; intermediates that ``einsums`` write are added to it.
            path: old module path -> new one.
        """
        kernels: dict[int, int] = {}

        def renamed(access: Access) -> Access:
            return Access(names.get(access.tensor, access.tensor), access.ranks, access.elements)

        for e in einsums:
            inputs = tuple(renamed(a) for a in e.inputs)
            target = e.output.tensor
            if target not in names and self.tensors[target].role is Role.INTERMEDIATE:
                names[target] = self._new_name()
                known = self.tensors[target]
                self.tensors[names[target]] = Tensor(names[target], known.shape, known.dtype, known.role)
            if e.kernel not in kernels:
                kernels[e.kernel] = self.next_kernel()
            output = renamed(e.output)
            self._outputs.add(output.tensor)
            self.einsums.append(
                Einsum(
                    f"e{len(self.einsums)}",
                    e.op,
                    e.ranks,
                    inputs,
                    output,
                    e.map,
                    e.reduce,
                    e.iterative,
                    path(e.module),
                    kernels[e.kernel],
                    e.source,
                )
            )

    def bind_to(self, tensor: TorchTensor, name: str) -> None:
        """Declares that ``tensor``'s storage is the known tensor ``name``."""
        storage = tensor.untyped_storage()
        self._keep.append(storage)
        self._storages[storage._cdata] = _Known(name, self.tensors[name].role)

    def note_unknown(self, name: str) -> None:
        self.unknown[name] = None

    def cascade(self, results: Sequence[TorchTensor]) -> Cascade:
        for tensor in results:
            if not self.known(tensor):
                continue
            name = self.name_of(tensor)
            if self.tensors[name].role is Role.INTERMEDIATE:
                t = self.tensors[name]
                self.tensors[name] = Tensor(name, t.shape, t.dtype, Role.OUTPUT)
        used = {a.tensor for e in self.einsums for a in (*e.inputs, e.output)}
        tensors = {name: t for name, t in self.tensors.items() if name in used}
        return Cascade(tuple(self.einsums), tensors, tuple(sorted(self.unknown)))


def _dtype(dtype: torch.dtype) -> str:
    try:
        return dtypes.name_of(dtype)
    except KeyError:
        raise HastenError(f"no name for numbers of type {dtype}: convert the model to another dtype") from None


class _Fakes:
    """Fake twins of real tensors; tensors that share memory get twins that share a storage."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._by_id: dict[int, TorchTensor] = {}
        self._by_storage: dict[int, list[tuple[TorchTensor, TorchTensor]]] = {}
        self._keep: list[TorchTensor] = []

    def is_mine(self, tensor: TorchTensor) -> bool:
        return isinstance(tensor, FakeTensor) and tensor.fake_mode is self.mode

    def of(self, real: TorchTensor) -> TorchTensor:
        """The twin of ``real`` on the CPU device."""
        if self.is_mine(real):
            return real
        known = self._by_id.get(id(real))
        if known is not None:
            return known
        self._keep.append(real)
        twin = self._shared(real)
        if twin is None:
            with self.mode, torch.no_grad():
                if real.layout is not torch.strided:
                    raise HastenError(f"cannot trace a {real.layout} tensor: make it dense first")
                twin = torch.empty_strided(tuple(real.shape), real.stride(), dtype=real.dtype, device="cpu")
            if not isinstance(real, FakeTensor):
                self._by_storage.setdefault(real.untyped_storage()._cdata, []).append((real, twin))
        self._by_id[id(real)] = twin
        return twin

    def _shared(self, real: TorchTensor) -> TorchTensor | None:
        if isinstance(real, FakeTensor) or real.layout is not torch.strided:
            return None
        for other, twin in self._by_storage.get(real.untyped_storage()._cdata, []):
            if other.dtype != real.dtype:
                continue
            start = real.storage_offset() - other.storage_offset()
            if start >= 0 and start + _extent(real) <= _extent(other):
                with self.mode, torch.no_grad():
                    return twin.as_strided(tuple(real.shape), real.stride(), start)
        return None


def _extent(tensor: TorchTensor) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0


_FUNCTIONS = {"_grouped_mm", "scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu"}


class _Functions(TorchFunctionMode):
    """Catches what torch would take apart differently on every device: attention and recurrent layers."""

    def __init__(self, tracer: _Tracer) -> None:
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
        arguments = {"query": query, "key": key, "value": value, "attn_mask": attn_mask}
        call = operators.Call(self.tracer.recorder, name, arguments, [output])
        operators.attention(call, query, key, value, attn_mask, output)
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
        operators.TABLE["aten::_grouped_mm"](
            operators.Call(self.tracer.recorder, "aten::_grouped_mm", arguments, [output])
        )
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
        call = operators.Call(self.tracer.recorder, f"aten::{kind}", {"input": x}, [output, *last])
        operators.recurrent(call, kind, layers, directions, x, list(weights), biased, not batch_first, states)
        return (output, *last)


class _Tracer(TorchDispatchMode):
    """Runs every operator on fake tensors and hands it to its handler."""

    def __init__(self, recorder: Recorder, fakes: _Fakes) -> None:
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
        handler = operators.TABLE.get(name)
        if handler is None and not self.silent and not func.is_view and not _pointwise(func):
            with self:
                taken_apart = func.decompose(*args, **kwargs)
            if taken_apart is not NotImplemented:
                return taken_apart
        result = func(*args, **kwargs)
        if self.silent:
            return result
        arguments = _bind(schema, args, kwargs)
        written = [arguments[a.name] for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        outputs = [t for t in tree_flatten(result)[0] if isinstance(t, TorchTensor)]
        outputs = outputs or [t for t in tree_flatten(written)[0] if isinstance(t, TorchTensor)]
        call_inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, TorchTensor)]
        if not written and outputs and _all_views(outputs, call_inputs):
            return result
        if any(isinstance(a, TorchTensor) for a in written):
            arguments = {k: v for k, v in arguments.items() if not _is_out(schema, k)}
        call = operators.Call(self.recorder, name, arguments, outputs)
        if handler is not None:
            handler(call)
        elif _pointwise(func):
            operators.elementwise(call)
        elif outputs:
            operators.unknown(call)
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


def _bind(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound: dict[str, Any] = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(args):
            bound[argument.name] = args[i]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def _is_out(schema: Any, name: str) -> bool:
    return any(a.name == name and a.is_out for a in schema.arguments)


def _all_views(outputs: Sequence[TorchTensor], inputs: Sequence[TorchTensor]) -> bool:
    storages = {t.untyped_storage()._cdata for t in inputs}
    return all(t.untyped_storage()._cdata in storages for t in outputs)


@contextmanager
def _swapped(module: nn.Module | None, fakes: _Fakes) -> Iterator[None]:
    """The module with fake twins for its parameters and buffers, put back afterwards."""
    if module is None:
        yield
        return
    saved: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for child in module.modules():
            tables: tuple[dict[str, Any], ...] = (child._parameters, child._buffers)
            for table in tables:
                for key, tensor in list(table.items()):
                    if tensor is None:
                        continue
                    twin = fakes.of(tensor)
                    # torch folds a matmul's batch or not depending on whether a weight is trained.
                    if isinstance(tensor, nn.Parameter) and not isinstance(twin, nn.Parameter):
                        twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
                        fakes._by_id[id(tensor)] = twin
                    saved.append((table, key, tensor))
                    table[key] = twin
        yield
    finally:
        for table, key, tensor in reversed(saved):
            table[key] = tensor


@contextmanager
def _module_paths(module: nn.Module | None, recorder: Recorder) -> Iterator[None]:
    """Keeps ``recorder.path`` at the module that is running."""
    if module is None:
        yield
        return
    paths = {id(child): name for name, child in module.named_modules()}
    stack: list[str] = []

    def enter(child: nn.Module, args: Any) -> None:
        stack.append(recorder.path)
        recorder.path = paths.get(id(child), recorder.path)

    def leave(child: nn.Module, args: Any, output: Any) -> None:
        recorder.path = stack.pop()

    before = nn.modules.module.register_module_forward_pre_hook(enter)
    after = nn.modules.module.register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def grouped_experts(
    hidden: TorchTensor,
    ids: TorchTensor,
    scores: TorchTensor,
    gate_up: TorchTensor,
    down: TorchTensor,
    activation: Callable[[TorchTensor], TorchTensor],
) -> TorchTensor:
    """A mixture of gated experts with static shapes: rows sorted by expert, one grouped matmul a projection.

    Args:
        hidden: (tokens, D).
        ids, scores: (tokens, k), the experts chosen and their weights. Ids beyond the experts that ``down``
            has stand for experts that pass their input on; balanced routing sends them their share.
        gate_up: (experts or more, 2 I, D).
        down: (experts, D, I).
    """
    total, experts = gate_up.shape[0], down.shape[0]
    chosen = -(-ids.numel() * experts // total)
    order = torch.sort(ids.reshape(-1)).indices
    flat = scores.reshape(-1)
    real, passed = order[:chosen], order[chosen:]
    ends = torch.cumsum(torch.histc(ids.reshape(-1).float(), experts), 0, dtype=torch.int32)
    rows = hidden[real // ids.shape[-1]]
    gate, up = torch._grouped_mm(rows, gate_up[:experts].transpose(-2, -1), offs=ends).chunk(2, -1)
    made = torch._grouped_mm(activation(gate) * up, down.transpose(-2, -1), offs=ends)
    made = (made * flat[real, None]).to(hidden.dtype)
    result = torch.zeros_like(hidden).index_add_(0, real // ids.shape[-1], made)
    if passed.numel():
        token = passed // ids.shape[-1]
        result.index_add_(0, token, (hidden[token] * flat[passed, None]).to(hidden.dtype))
    return result


@contextmanager
def _static_experts(module: nn.Module | None) -> Iterator[None]:
    """A transformers mixture of experts loops over the experts that were hit, which no shape tells; its
    grouped form computes the same with static shapes."""
    experts = [] if module is None else [m for m in module.modules() if "Experts" in type(m).__name__]
    configs = {id(c): c for m in experts if (c := getattr(m, "config", None)) is not None}
    chosen = {key: getattr(c, "_experts_implementation", None) for key, c in configs.items()}
    loops = [
        m for m in experts
        if getattr(m, "config", None) is None and hasattr(m, "gate_up_proj") and hasattr(m, "act_fn")
    ]  # fmt: skip
    for key, config in configs.items():
        if chosen[key] != "batched_mm":
            config._experts_implementation = "grouped_mm"
    for loop in loops:

        def forward(
            hidden_states: TorchTensor,
            top_k_index: TorchTensor,
            top_k_weights: TorchTensor,
            loop: Any = loop,
        ) -> TorchTensor:
            return grouped_experts(
                hidden_states, top_k_index, top_k_weights, loop.gate_up_proj, loop.down_proj, loop.act_fn
            )

        loop.__dict__["forward"] = forward
    try:
        yield
    finally:
        for loop in loops:
            del loop.__dict__["forward"]
        for key, config in configs.items():
            config._experts_implementation = chosen[key]


@contextmanager
def _plain_attention() -> Iterator[None]:
    """torch.nn.MultiheadAttention without its fused inference path, which hides what it computes."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def recording(recorder: Recorder, mode: FakeTensorMode) -> Iterator[None]:
    """What torch is asked for in this context goes to ``recorder``; tensors made here are fake."""
    tracer = _Tracer(recorder, _Fakes(mode))
    with torch.no_grad(), mode, tracer, _Functions(tracer):
        yield


class Traced(NamedTuple):
    """One traced call.

    Args:
        cascade: what it computes.
        weights: bytes of every parameter and buffer of the module, by name, tied ones once.
        state: bytes of every state tensor, by name.
    """

    cascade: Cascade
    weights: dict[str, int]
    state: dict[str, int]


def trace_cascade(
    target: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    module: nn.Module | None = None,
    state: Mapping[str, TorchTensor] | Callable[[Mapping[str, Any]], Mapping[str, TorchTensor]] | None = None,
    prepare: Callable[[], tuple[Sequence[Any], Mapping[str, Any]]] | None = None,
) -> Traced:
    """What one call of ``target`` computes.

    Args:
        target: a module, or any function that calls modules.
        args, kwargs: its arguments; tensors in them become inputs ``input0``, ``input1``, ... in order
            (keyword arguments under their own names).
        module: whose parameters are the weights, under their names in ``named_parameters()``; by default
            ``target`` itself, or the module that it is a method of.
        state: tensors that outlive the call, by name (they may be on the meta device); or a function that
            is given the keyword arguments and returns them.
        prepare: makes (args, kwargs) instead, on fake tensors: for caches too large to allocate.

    Returns:
        The cascade with the bytes of weights and state. Operators that hasten does not know are in
        ``Cascade.unknown``.

    Raises:
        HastenError: the program's shapes depend on values (``nonzero``, ``item``), or an operator has no
            fake implementation.
    """
    if module is None:
        owner = target if isinstance(target, nn.Module) else getattr(target, "__self__", None)
        module = owner if isinstance(owner, nn.Module) else None
    recorder = Recorder()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = _Fakes(mode)
    tracer = _Tracer(recorder, fakes)
    with ExitStack() as stack:
        stack.enter_context(_static_experts(module))
        stack.enter_context(_swapped(module, fakes))
        if module is not None:
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                recorder.bind(tensor, name, Role.WEIGHT)
        stack.enter_context(torch.no_grad())
        if prepare is not None:
            with mode:
                args, kwargs = prepare()
        kwargs = dict(kwargs or {})
        held = dict(state(kwargs) if callable(state) else state or {})
        for name, tensor in held.items():
            recorder.bind(fakes.of(tensor), name, Role.STATE, tensor.shape)
        fake_args = [_fake_input(a, f"input{i}", fakes, recorder) for i, a in enumerate(args)]
        fake_kwargs = {k: _fake_input(v, k, fakes, recorder) for k, v in kwargs.items()}
        stack.enter_context(_plain_attention())
        stack.enter_context(_module_paths(module, recorder))
        stack.enter_context(mode)
        stack.enter_context(tracer)
        stack.enter_context(_Functions(tracer))
        try:
            result = target(*fake_args, **fake_kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HastenError(
                f"cannot trace {_called(target)}: {error} makes shapes depend on values "
                f"(in module {recorder.path or 'forward'!r}): rewrite that part with fixed shapes"
            ) from error
        except UnsupportedOperatorException as error:
            raise HastenError(
                f"cannot trace {_called(target)}: operator {error} has no fake implementation: "
                "add one with torch.library.register_fake"
            ) from error
    cascade = recorder.cascade(_tensors(result))
    weights = {} if module is None else weight_bytes(module, recorder.tensors)
    return Traced(cascade, weights, {name: recorder.tensors[name].nbytes for name in held})


def _called(target: Any) -> str:
    return type(target).__name__ if isinstance(target, nn.Module) else getattr(target, "__name__", "the function")


def _tensors(result: Any) -> list[TorchTensor]:
    """Tensors of a result; objects such as a cache inside a model's output are not results."""
    leaves = tree_flatten(dict(result) if isinstance(result, Mapping) else result)[0]
    return [t for t in leaves if isinstance(t, TorchTensor)]


def _fake_input(value: Any, name: str, fakes: _Fakes, recorder: Recorder) -> Any:
    leaves, spec = tree_flatten(value)
    many = sum(isinstance(leaf, TorchTensor) for leaf in leaves) > 1
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, TorchTensor):
            leaves[i] = fakes.of(leaf)
            recorder.bind(leaves[i], f"{name}.{i}" if many else name, Role.INPUT)
    return tree_unflatten(leaves, spec)


def weight_bytes(module: nn.Module, described: Mapping[str, Tensor] | None = None) -> dict[str, int]:
    """Bytes of every parameter and buffer of ``module`` by name, tied ones once.

    Args:
        described: tensors by name that are not what their torch dtype says (int4 codes).
    """
    found: dict[str, int] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        known = (described or {}).get(name)
        found[name] = known.nbytes if known else tensor.numel() * tensor.element_size()
    return found


def trace(module: nn.Module, *inputs: Any, name: str = "", **kwargs: Any) -> Workload:
    """What one forward pass of ``module`` computes, as a workload with the one phase ``forward``.

    Args:
        module: any torch module, real or on the meta device; it is left as it was.
        name: of the workload; the class name when empty.
        inputs, kwargs: arguments of its ``forward``; only the tensors' shapes and dtypes matter.

    Returns:
        A workload whose weights are the module's parameters and buffers.

    Raises:
        HastenError: see `trace_cascade`.

    >>> work = trace(nn.Linear(8, 4), torch.zeros(2, 8))
    >>> work.flops
    128
    """
    cascade, weights, state = trace_cascade(module, inputs, kwargs)
    return Workload(name or type(module).__name__, (Phase("forward", cascade),), weights, state)
