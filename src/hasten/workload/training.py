"""A step of training, from the description of a forward pass."""

from __future__ import annotations

from dataclasses import replace

from hasten import dtypes
from hasten.workload.einsum import Access, Cascade, Einsum, Op, Phase, Role, Tensor, Workload

# Bytes of a parameter that Adam keeps beside it: two moments and, with weights in 16 bits, the weights in 32.
_MOMENTS = 8


def training(forward: Workload, *, recomputed: bool = False) -> Workload:
    """The phases ``forward``, ``backward`` and ``optimizer`` of one step with Adam.

    The backward pass has, for each product of the forward pass, one towards its input and one towards its weight, and
    reads and writes as much for each of them. The optimizer reads each weight, its gradient and two moments, and writes
    all but the gradient.

    Args:
        forward: of one phase, as many repeats as micro-batches in a step.
        recomputed: activations are not kept but made again (Chen et al., arXiv 1604.06174): one more forward pass.

    Returns:
        A workload whose state holds gradients, moments and, where they are kept, activations.
    """
    first = forward.phases[0]
    cascade = first.cascade
    kept = [t for t in cascade.tensors.values() if t.role is Role.INTERMEDIATE]
    weights = [t for t in cascade.tensors.values() if t.role is Role.WEIGHT]
    moments = sum(_MOMENTS * _count(t) + (4 * _count(t) if dtypes.BITS[t.dtype] < 32 else 0) for t in weights)
    return replace(
        forward,
        phases=(
            Phase("forward", cascade, first.repeats),
            Phase("backward", cascade, (3 if recomputed else 2) * first.repeats),
            Phase("optimizer", _optimizer(weights), 1),
        ),
        state={
            "gradients": sum(forward.weights.values()),
            "moments": moments,
            "activations": 0 if recomputed else sum(t.nbytes for t in kept),
        },
        attributes={**forward.attributes, "training": 1},
    )


def _count(tensor: Tensor) -> int:
    return tensor.nbytes * 8 // dtypes.BITS[tensor.dtype]


def _optimizer(weights: list[Tensor]) -> Cascade:
    """All parameters at once, as fused optimizers do."""
    count = sum(map(_count, weights))
    wide = any(dtypes.BITS[t.dtype] < 32 for t in weights)
    names = ("gradient", "first", "second", *(("master",) if wide else ()))
    narrow = weights[0].dtype if weights else "fp32"
    shape = (max(count, 1),)
    tensors = {
        "weight": Tensor("weight", shape, narrow, Role.WEIGHT),
        **{n: Tensor(n, shape, narrow if n == "gradient" else "fp32", Role.STATE) for n in names},
    }
    access = ("p",)
    einsums = tuple(
        Einsum(
            f"optimizer.{target}",
            Op.ELEMENTWISE,
            (("p", shape[0]),),
            tuple(Access(n, access) for n in (target, "gradient")),
            Access(target, access),
            map="add",
            kernel=i,
        )
        for i, target in enumerate((*names[1:], "weight"))
    )
    return Cascade(einsums, tensors)
