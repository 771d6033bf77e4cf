"""Several devices on one model: what each does of it, and what they tell each other.

Tensor parallelism (Shoeybi et al., arXiv 1909.08053, section 3): products, attention and what is cached are divided
evenly, and the result of each product that ends a sublayer is summed over all devices. Experts are divided as they are
(expert parallelism), with one sum after them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from hasten.cost.folding import copies_of
from hasten.hardware import Device
from hasten.workload import Cascade, Einsum, Op, Role

# The last name of a module whose product ends a sublayer, in transformers' models.
_LAST = re.compile(r"(^|\.)(o_proj|out_proj|wo|dense|down_proj|w2|fc2|c_proj|dense_4h_to_h|fc_out|output_linear)$")


class Sharing:
    """How the kernels of a cascade are shared by ``device.count`` devices."""

    def __init__(self, cascade: Cascade, device: Device) -> None:
        self._cascade = cascade
        self._device = device
        self._summed = _summed(cascade) if device.count > 1 else frozenset()

    def parts(self, group: Sequence[Einsum]) -> int:
        """Into how many equal parts the work of a kernel is divided; 1 where each device does all of it."""
        tensors = self._cascade.tensors
        divided = any(
            e.op in (Op.MATMUL, Op.CONV) or any(tensors[a.tensor].role is Role.STATE for a in (*e.inputs, e.output))
            for e in group
        )
        return self._device.count if divided else 1

    def seconds(self, group: Sequence[Einsum]) -> float:
        """Seconds of the sums over all devices that follow a kernel."""
        amounts = [self._cascade.access_bytes(e, e.output) for e in group if e.name in self._summed]
        return sum(sum_seconds(self._device, amount) for amount in amounts)

    @property
    def sums(self) -> int:
        """Sums over all devices in one execution."""
        return sum(copies_of(e) for e in self._cascade.einsums if e.name in self._summed)


def sum_seconds(device: Device, amount: float) -> float:
    """Seconds in which ``device.count`` devices sum ``amount`` bytes that each has, over their first link.

    The bytes go round a ring, each link carrying 2 (n - 1) / n of them one way; a short message takes as many
    latencies as a tree is high, there and back.
    """
    link, count = device.links[0], device.count
    ring = 2 * (count - 1) / count * amount / (float(link.bandwidth) / 2)
    return ring + 2 * math.ceil(math.log2(count)) * float(link.latency)


def _summed(cascade: Cascade) -> frozenset[str]:
    """Names of the Einsums whose result is summed: the products that end a sublayer."""
    tensors = cascade.tensors
    products = [
        e for e in cascade.einsums
        if e.op is Op.MATMUL and any(tensors[a.tensor].role is Role.WEIGHT and "k" in a.ranks for a in e.inputs)
    ]  # fmt: skip
    grouped = [e for e in products if "grouped_mm" in e.source]
    last = {e.name for e in products if _LAST.search(e.module)} | {e.name for e in grouped[1::2]}
    # In a network whose names say nothing every second product ends what the one before it began.
    return frozenset(last or {e.name for e in products[1::2]})
