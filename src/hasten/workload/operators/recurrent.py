"""Recurrent layers as torch has them: LSTM, GRU and plain ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor as TorchTensor

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call
from hasten.workload.operators.patterns import axes

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(
    call: Call,
    kind: str,
    layers: int,
    directions: int,
    x: TorchTensor,
    weights: Sequence[TorchTensor],
    biased: bool,
    steps_first: bool,
    hidden: Sequence[TorchTensor],
) -> None:
    """Per layer and direction: the input projection of all steps, then the recurrence along t.

    Outputs of the call: the sequence, then the last hidden state(s).
    """
    output, *last = call.outputs
    batched = x.dim() == 3
    steps = x.shape[0] if steps_first or not batched else x.shape[1]
    batch = (x.shape[1] if steps_first else x.shape[0]) if batched else 1
    each = len(weights) // (layers * directions)
    gates = _GATES[kind]
    source: list[tuple[TorchTensor | str, int]] = [(x, x.shape[-1])]
    tn = ["t", "b", "n"]
    for layer in range(layers):
        produced: list[tuple[TorchTensor | str, int]] = []
        for direction in range(directions):
            index = (layer * directions + direction) * each
            w_in, w_rec, *rest = weights[index : index + each]
            size, width = w_rec.shape[1], w_rec.shape[0]
            kernel = call.kernel if not index else call.recorder.next_kernel()
            dtype = x.dtype
            projected = call.temporary((steps, batch, width), dtype)
            # Several sources (the directions of the layer below) are parts of one contraction rank.
            k = w_in.shape[1]
            inputs = [call.read(s, ["t", "b", "k"], None if len(source) == 1 else steps * batch * n) for s, n in source]
            call.emit(
                Op.MATMUL,
                (("t", steps), ("b", batch), ("n", width), ("k", k)),
                [*inputs, call.read(w_in, ["n", "k"])],
                projected,
                tn,
                reduce="sum",
                kernel=kernel,
            )
            final = layer == layers - 1
            state: TorchTensor | str = call.temporary((steps, batch, size), dtype)
            carried = call.temporary((steps, batch, width), dtype)
            call.emit(
                Op.MATMUL,
                (("t", steps), ("b", batch), ("n", width), ("k", size)),
                [call.read(hidden[0], ["b", "k"], batch * size), call.read(w_rec, ["n", "k"])],
                carried,
                tn,
                reduce="sum",
                iterative=["t"],
                kernel=kernel,
            )
            biases = [call.read(b, ["g", "n"]) for b in rest[:2]] if biased else []
            cells = [call.read(h, ["b", "n"], batch * size) for h in hidden[1:]]
            target = output if final and directions == 1 else state
            inside = [call.read(projected, ["t", "b", "g", "n"]), call.read(carried, ["t", "b", "g", "n"])]
            call.emit(
                Op.SCAN,
                (("t", steps), ("b", batch), ("g", gates), ("n", size)),
                [*inside, *biases, *cells],
                target,
                tn,
                map=f"{kind}-gates",
                reduce="gate",
                iterative=["t"],
                kernel=kernel,
            )
            produced.append((target, size))
        source = produced
    if directions > 1:
        joined = [call.read(s, tn, steps * batch * n) for s, n in source]
        width = sum(n for _, n in source)
        call.emit(Op.COPY, (("t", steps), ("b", batch), ("n", width)), joined, output, tn, map="copy")
    for tensor in last:
        ranks = axes(tensor.shape)
        names = [r for r, _ in ranks]
        call.emit(Op.COPY, ranks, [call.read(output, names, tensor.numel())], tensor, names, map="copy")
