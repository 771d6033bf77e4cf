"""Recurrences as one kernel each: what stands in for the loops that transformers falls back to.

Engines run a recurrence as a fused kernel (mamba-ssm, flash-linear-attention); without those, transformers goes on
token by token in Python, which takes as long to trace as the prompt is and says nothing of what an engine does. The
functions here have the names and arguments of its fallbacks and give the Einsums of the kernels: a scan that keeps
its state on chip, or chunks of `CHUNK` tokens, in which the recurrence is matrix products (Mamba-2, arXiv 2405.21060,
section 6; gated delta networks, arXiv 2412.06464, section 3.3).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hasten.kernels.selective_scan import selective_scan
from hasten.workload.dispatch import Tracer
from hasten.workload.einsum import Op
from hasten.workload.operators import TABLE, Call, axes

CHUNK = 64


class Recurrences:
    """The fallbacks of transformers by name, for one traced call.

    Attributes:
        used: the recurrences that were described so.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self.used: dict[str, None] = {}
        self.by_name: dict[str, Callable[..., Any]] = {
            "mamba_selective_scan": self._selective_scan,
            "mamba_selective_state_update": self._selective_step,
            "mamba2_chunk_scan": self._state_space,
            "mamba2_selective_state_update": self._state_space_step,
            "torch_chunk_gated_delta_rule": self._delta_rule,
            "torch_recurrent_gated_delta_rule": self._delta_rule,
            "chunk_kimi_delta_attention": self._delta_rule,
            "recurrent_kimi_delta_attention": self._delta_rule,
            "rwkv_linear_attention": self._wkv,
        }

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with self._tracer.quiet():
            return torch.empty(shape, dtype=dtype)

    def _call(self, name: str, outputs: list[Tensor], **arguments: Any) -> Call:
        self.used[name] = None
        return Call(self._tracer.recorder, f"hasten::{name}", arguments, outputs)

    # -- Mamba -----------------------------------------------------------------------------------

    def _selective_scan(
        self, hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any = None, z: Any = None,
        delta_bias: Any = None, delta_softplus: bool = False, return_last_state: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        self.used["selective_scan"] = None
        x, delta, B, C = (t.transpose(1, 2) for t in (hidden_states, dt, B, C))
        gate = None if z is None else z.transpose(1, 2)
        y, last = selective_scan(x, delta, A, B, C, D, gate, delta_bias, delta_softplus=delta_softplus)
        return (y.transpose(1, 2), last) if return_last_state else y.transpose(1, 2)

    def _selective_step(
        self, state: Tensor, hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any = None,
        z: Any = None, dt_bias: Any = None, dt_softplus: bool = False, **options: Any,
    ) -> Tensor:  # fmt: skip
        x, delta, B, C = (t[:, None] for t in (hidden_states, dt, B, C))
        gate, y = None if z is None else z[:, None], self._new(tuple(x.shape), x.dtype)
        # The same operator, but that the state moves on where it lies.
        call = self._call("selective_scan", [y, state, y], x=x, delta=delta, A=A, B=B, C=C, D=D, z=gate,
                          delta_bias=dt_bias, initial=state, keep=False)  # fmt: skip
        TABLE[call.name](call)
        return y[:, 0]

    def _state_space(
        self, hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Any = None,
        dt_bias: Any = None, initial_states: Tensor | None = None, return_final_states: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        batch, _, heads, width = hidden_states.shape
        last = self._new((batch, heads, width, B.shape[-1]), torch.float32)
        beside = [t for t in (dt, A, D, dt_bias) if t is not None]
        y = self._chunks("state_space", C, B, hidden_states, beside, initial_states, last, chunk_size)
        return (y, last) if return_final_states else y

    def _state_space_step(
        self, state: Tensor, hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any = None,
        dt_bias: Any = None, dt_softplus: bool = False, z: Any = None, **options: Any,
    ) -> Tensor:  # fmt: skip
        beside = [t for t in (dt, A, D, dt_bias, z) if t is not None]
        one = [t[:, None] for t in (C, B, hidden_states)]
        return self._chunks("state_space", one[0], one[1], one[2], beside, state, state)[:, 0]

    # -- delta rules -----------------------------------------------------------------------------

    def _delta_rule(
        self, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, chunk_size: int = CHUNK,
        initial_state: Tensor | None = None, output_final_state: bool = False, **options: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        batch, length, heads, width = value.shape
        last = initial_state if initial_state is not None and length == 1 else None
        if last is None:
            last = self._new((batch, heads, key.shape[-1], width), torch.float32)
        y = self._chunks("delta_rule", query, key, value, [g, beta], initial_state, last, chunk_size, delta=True)
        return y, last if output_final_state else None

    # -- all that are matrix products in a chunk -------------------------------------------------

    def _chunks(
        self, name: str, query: Tensor, key: Tensor, value: Tensor, beside: list[Tensor], initial: Tensor | None,
        last: Tensor, chunk: int = CHUNK, delta: bool = False,
    ) -> Tensor:  # fmt: skip
        """Query and key (batch, time, groups, channels), value (batch, time, heads, values), a state for each head."""
        batch, length, heads, width = value.shape
        channels = key.shape[-1]
        y = self._new((batch, length, heads, width), value.dtype)
        call = self._call(name, [y, last], query=query, key=key, value=value, beside=beside, initial=initial)

        def read(tensor: Tensor | str, ranks: list[str], count: int | None = None) -> Any:
            return call.read(tensor, ranks, tensor.numel() if isinstance(tensor, Tensor) else count)

        other = [read(t, ["b"]) for t in beside]
        before = [] if initial is None else [read(initial, ["b", "k", "n"])]
        if length == 1:
            # One step: the state is decayed, added to and read out; nothing of it is worth a product's tiles.
            ranks = (("b", batch * heads), ("k", channels), ("n", width))
            grown = [read(key, ["b", "k"]), read(value, ["b", "n"])]
            if delta:
                seen = call.temporary((batch * heads, width), torch.float32)
                call.emit(Op.REDUCE, ranks, [*before, grown[0]], seen, ["b", "n"], map="mul", reduce="sum")
                grown.append(call.read(seen, ["b", "n"]))
            names = ["b", "k", "n"]
            call.emit(Op.SCAN, ranks, [*before, *grown, *other], last, names, elements=last.numel(), map="mul-add")
            found = [read(last, names), read(query, ["b", "k"])]
            call.emit(Op.REDUCE, ranks, found, y, ["b", "n"], elements=y.numel(), map="mul", reduce="sum")
            return y
        size = min(chunk, length)
        many = batch * heads * -(-length // size)

        def product(m: int, n: int, k: int, inputs: list[Any], target: Tensor | str | None = None) -> str | Tensor:
            made = target if target is not None else call.temporary((many, m, n), value.dtype)
            count = made.numel() if isinstance(made, Tensor) else None
            ranks = (("b", many), ("m", m), ("n", n), ("k", k))
            call.emit(Op.MATMUL, ranks, inputs, made, ["b", "m", "n"], elements=count, reduce="sum")
            return made

        mk, nk, kn = ["b", "m", "k"], ["b", "n", "k"], ["b", "k", "n"]
        scores = product(size, size, channels, [read(query, mk), read(key, nk)])
        weights = call.temporary((many, size, size), value.dtype)
        square = (("b", many), ("m", size), ("n", size))
        decayed = [call.read(scores, ["b", "m", "n"]), *other]
        call.emit(Op.ELEMENTWISE, square, decayed, weights, ["b", "m", "n"], map="mul-exp")
        if delta:
            # What the chunk's own earlier keys already wrote comes off the values (the WY form).
            overlap = product(size, size, channels, [read(key, mk), read(key, nk)])
            product(size, channels, size, [call.read(overlap, mk), read(key, kn)])
            product(size, width, size, [call.read(overlap, mk), read(value, kn)])
            product(size, width, channels, [read(key, mk), read(last, kn)])
        product(channels, width, size, [read(key, ["b", "k", "m"]), read(value, kn), *before], last)
        carried = product(size, width, channels, [read(query, mk), read(last, kn)])
        within = product(size, width, size, [call.read(weights, mk), read(value, kn)])
        both = [call.read(carried, ["b", "m", "n"]), call.read(within, ["b", "m", "n"])]
        ranks = (("b", many), ("m", size), ("n", width))
        call.emit(Op.ELEMENTWISE, ranks, both, y, ["b", "m", "n"], elements=y.numel(), map="add")
        return y

    # -- channel by channel ----------------------------------------------------------------------

    def _wkv(
        self, time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, state: Any = None,
        return_state: bool = False,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """RWKV-4's weighted average (arXiv 2305.13048, section 3.1): three states a channel."""
        batch, length, channels = key.shape
        y = self._new(tuple(key.shape), key.dtype)
        left = [self._new((batch, channels), torch.float32) for _ in range(3)]
        call = self._call("wkv", [y, *left], time_decay=time_decay, time_first=time_first, key=key, value=value)
        ranks, btc, bc = (("b", batch), ("t", length), ("c", channels)), ["b", "t", "c"], ["b", "c"]
        given = [call.read(t, btc) for t in (key, value)] + [call.read(t, ["c"]) for t in (time_decay, time_first)]
        before = [call.read(t, bc) for t in state or ()]
        for made in left:
            call.emit(Op.SCAN, ranks, [*given, *before], made, bc, map="exp-decay", iterative=["t"])
        call.emit(Op.ELEMENTWISE, ranks, [*given, *(call.read(t, bc) for t in left)], y, btc, map="div")
        return y, left if return_state or state is not None else state

    def mlstm(
        self, query: Tensor, key: Tensor, value: Tensor, igate: Tensor, fgate: Tensor, c_initial: Tensor | None = None,
        n_initial: Tensor | None = None, m_initial: Tensor | None = None, return_last_states: bool | None = None,
        mode: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        """The matrix memory of xLSTM (arXiv 2405.04517, section 2.3), all (batch, heads, time, channels)."""
        batch, heads, length, channels = query.shape
        turned = [t.transpose(1, 2) for t in (query, key, value)]
        last = c_initial if c_initial is not None and length == 1 else None
        if last is None:
            last = self._new((batch, heads, channels, value.shape[-1]), torch.float32)
        beside = [t for t in (igate, fgate, n_initial, m_initial) if t is not None]
        y = self._chunks("matrix_memory", turned[0], turned[1], turned[2], beside, c_initial, last).transpose(1, 2)
        norm, top = self._new((batch, heads, channels), torch.float32), self._new((batch, heads, 1), torch.float32)
        return (y, (last, norm, top))

    def lightning(self, module: Any, hidden_states: Tensor, past_key_values: Any) -> tuple[Tensor, Tensor]:
        """MiniMax's linear attention with a decay a head (arXiv 2501.08313, section 2.2)."""
        batch, length, _ = hidden_states.shape
        qkv = module.act_fn(module.qkv_proj(hidden_states))
        parts = qkv.reshape(batch, length, module.num_attention_heads, 3 * module.head_dim).split(module.head_dim, 3)
        before = None if past_key_values is None else past_key_values.get_linear_cache(module.layer_idx)
        last = before if before is not None and length == 1 else None
        if last is None:
            last = self._new((batch, module.num_attention_heads, module.head_dim, module.head_dim), qkv.dtype)
        query, key, value = parts
        y = self._chunks("lightning_attention", query, key, value, [module.slope_rate], before, last, module.block_size)
        mixed = torch.sigmoid(module.output_gate(hidden_states)) * module.norm(y.flatten(2))
        if past_key_values is not None:
            past_key_values.set_linear_cache(module.layer_idx, last)
        return module.out_proj(mixed), last

    def linear(self, gate: Tensor, x: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        """h[t] = gate[t] h[t-1] + x[t], all (batch, time, channels): the RG-LRU of Griffin (arXiv 2402.19427)."""
        y, last = self._new(tuple(x.shape), x.dtype), self._new((x.shape[0], x.shape[2]), torch.float32)
        call = self._call("linear_recurrence", [y, last], gate=gate, x=x, initial=initial)
        ranks = axes(x.shape)
        names = [r for r, _ in ranks]
        before = [] if initial is None else [call.read(initial, [names[0], names[2]])]
        inputs = [call.read(gate, names), call.read(x, names), *before]
        call.emit(Op.SCAN, ranks, inputs, last, [names[0], names[2]], map="mul-add", iterative=[names[1]])
        call.emit(Op.COPY, ranks, [call.read(last, [names[0], names[2]])], y, names, map="copy")
        return y, last


@contextmanager
def fused_recurrences(model: nn.Module, tracer: Tracer) -> Iterator[Recurrences]:
    """Within, the recurrences of ``model`` are those of `Recurrences`, where its classes' files have them."""
    made = Recurrences(tracer)
    files = {type(m).__module__: sys.modules[type(m).__module__] for m in model.modules()}
    saved = [
        (file, name, vars(file)[name])
        for label, file in files.items()
        if label.startswith("transformers.")
        for name in made.by_name
        if name in vars(file)
    ]
    for file, name, _ in saved:
        setattr(file, name, made.by_name[name])
    whole = [(m, name, stand_in) for m in model.modules() for name, stand_in in _parts(m, made)]
    for module, name, stand_in in whole:
        module.__dict__[name] = stand_in
    try:
        yield made
    finally:
        for module, name, _ in whole:
            del module.__dict__[name]
        for file, name, plain in saved:
            setattr(file, name, plain)


def _parts(module: Any, made: Recurrences) -> list[tuple[str, Callable[..., Any]]]:
    """Methods of a module that are loops themselves, with what stands in for them."""

    def scan(hidden_states: Tensor, recurrent_gate: Tensor, reset: Any, recurrent_states: Any, **_: Any) -> Any:
        return made.linear(recurrent_gate, hidden_states, recurrent_states)

    def lightning(hidden_states: Tensor, *args: Any, past_key_values: Any = None, **_: Any) -> Any:
        return made.lightning(module, hidden_states, past_key_values)

    found: dict[str, tuple[str, Callable[..., Any]]] = {
        "RecurrentGemmaRglru": ("_rnn_scan", scan),
        "xLSTMBackend": ("forward", made.mlstm),
        "MiniMaxLightningAttention": ("forward", lightning),
    }
    kind = type(module).__name__
    return [found[kind]] if kind in found else []
